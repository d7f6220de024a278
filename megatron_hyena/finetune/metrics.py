"""How good predictions are: figures of scikit-learn and scipy under the names of the configuration.

Of two classes, F1 and AUROC are of the second; of more, means over classes (AUROC one against the
rest). What is not defined, such as AUROC where a class is absent, is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError
from megatron_hyena.finetune.examples import IGNORED

Array = npt.NDArray[Any]


def class_metrics(probabilities: Array, labels: Array) -> dict[str, float]:
    """accuracy, mcc, f1 and auroc of probabilities [n, C] and classes [n]; -100 is left out."""
    metrics = _library()
    known = labels != IGNORED
    told, labels = probabilities[known], labels[known]
    if not len(labels):
        return dict.fromkeys(("accuracy", "mcc", "f1", "auroc"), math.nan)
    best, classes = told.argmax(1), told.shape[1]
    f1 = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    return {
        "accuracy": float(metrics.accuracy_score(labels, best)),
        "mcc": float(metrics.matthews_corrcoef(labels, best)),
        "f1": float(metrics.f1_score(labels, best, zero_division=0.0, **f1)),
        "auroc": _auroc(metrics, told, labels),
    }


def _auroc(metrics: Any, told: Array, labels: Array) -> float:
    classes = told.shape[1]
    if len(np.unique(labels)) < classes or not np.isfinite(told).all():
        return math.nan
    if classes == 2:
        return float(metrics.roc_auc_score(labels, told[:, 1]))
    each = [metrics.roc_auc_score(labels == c, told[:, c]) for c in range(classes)]
    return float(np.mean(each))


def number_metrics(predictions: Array, targets: Array) -> dict[str, float]:
    """spearman, pearson and r2 of numbers [n, k], means over columns; NaN targets are left out."""
    from scipy import stats

    columns = []
    for told, wanted in zip(predictions.T, targets.T, strict=True):
        known = ~np.isnan(wanted)
        told, wanted = told[known].astype(np.float64), wanted[known].astype(np.float64)
        if len(wanted) < 2 or np.ptp(wanted) == 0 or np.ptp(told) == 0:
            columns.append((math.nan, math.nan, math.nan))
            continue
        rest = ((told - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
        columns.append(
            (
                float(stats.spearmanr(told, wanted).statistic),
                float(stats.pearsonr(told, wanted).statistic),
                float(1 - rest),
            )
        )
    means = np.mean(np.array(columns), axis=0).tolist()
    return dict(zip(("spearman", "pearson", "r2"), means, strict=True))


def better(value: float, best: float | None, metric: str) -> bool:
    """Whether `value` beats `best` (None: nothing yet); of a loss the smaller one, NaN never."""
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best if metric == "loss" else value > best


def check_library() -> None:
    """Raise UserError where scikit-learn is missing; cheap, and before anything expensive."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise UserError(
            "fine-tuning measures with scikit-learn; install it with: "
            "pip install 'megatron-hyena[finetune]'"
        )


def _library() -> Any:
    check_library()
    from sklearn import metrics

    return metrics
