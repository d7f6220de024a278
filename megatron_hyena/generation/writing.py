"""From prompts to sequences: `generate`, in Python and behind `tools.generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.data.alphabet import EOD, SequenceType
from megatron_hyena.data.tokenizer import GenomicTokenizer
from megatron_hyena.errors import UserError
from megatron_hyena.generation.constraints import Constraint, check_beginning
from megatron_hyena.generation.decoder import Decoder
from megatron_hyena.generation.fitting import Fit
from megatron_hyena.generation.plan import Plan
from megatron_hyena.generation.sampling import Sampling
from megatron_hyena.model.hyena_glt import HyenaGLT

LETTERS = {
    SequenceType.DNA: "ACGT",
    SequenceType.RNA: "ACGU",
    SequenceType.PROTEIN: "ACDEFGHIKLMNPQRSTVWY",
    SequenceType.MIXED: "ACGT",
}
"""Letters that are written, by the type of sequence."""
BATCH = 16
"""Sequences that are written side by side."""


@dataclass
class Order:
    """One sequence to write.

    Attributes:
        name: of it; its draws follow from the seed and this.
        prompt: what it goes on from.
        prefix: what is written first, whatever the model says.
        constraint: of what comes behind; None for letters alone. It is used up.
        length: letters to write, the prefix included.
    """

    name: str
    prompt: str
    length: int
    prefix: str = ""
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.length < max(1, len(self.prefix)):
            raise UserError(
                f"{self.name}: a length of {self.length} letters is less than "
                f"{max(1, len(self.prefix))}, the prefix or one letter; give a larger length"
            )
        if not self.prompt:
            raise UserError(f"{self.name}: the prompt is empty; give one letter or more")
        if self.constraint is not None:
            check_beginning(self.constraint, self.prefix, self.name)


@dataclass(frozen=True)
class Written:
    """One sequence that was written.

    Attributes:
        name, prompt: of the order.
        text: what was written, the prefix included.
        end: `length`, `eod` (the model ended the document) or `constraint`.
        nats: mean -log p of the drawn letters among those allowed by the alphabet, at temperature
            1; NaN if none was drawn.
    """

    name: str
    prompt: str
    text: str
    end: str
    nats: float


@dataclass
class _Row:
    """An order under way."""

    order: Order
    numbers: list[float]
    text: list[str] = field(default_factory=list)
    nats: float = 0.0
    end: str = ""

    def write(self, letter: str | None) -> None:
        """A letter, or None for the end of the document."""
        constraint = self.order.constraint
        if letter is None:
            self.end = "eod"
            return
        self.text.append(letter)
        if constraint is not None:
            constraint.wrote(letter)
        self.check()

    def check(self) -> None:
        """Whether this is the end."""
        constraint = self.order.constraint
        if constraint is not None and constraint.ended:
            self.end = "constraint"
        elif len(self.order.prefix) + len(self.text) >= self.order.length:
            self.end = "length"

    def written(self) -> Written:
        """The result."""
        text = self.order.prefix + "".join(self.text)
        drawn = len(self.text) + (self.end == "eod")
        nats = self.nats / drawn if drawn else float("nan")
        return Written(self.order.name, self.order.prompt, text, self.end, nats)


def write_sequences(
    model: HyenaGLT,
    orders: Sequence[Order],
    sampling: Sampling,
    letters: str = LETTERS[SequenceType.DNA],
    kind: SequenceType | None = None,
    until_eod: bool = False,
    batch: int = BATCH,
    fit: Fit | None = None,
    watch: Callable[[int], object] = lambda count: None,
) -> Iterator[Written]:
    """Write every order, in order.

    Args:
        model: causal, on one rank.
        orders: what to write.
        sampling: how letters are drawn.
        letters: that may be drawn.
        kind: type of the sequences, for models that read it; None for the model's default.
        until_eod: let the model end a sequence before its length.
        batch: sequences side by side. It changes no draw but where one falls within the rounding
            of the model's numbers to the border between two letters.
        fit: see `Plan`.
        watch: told how many letters were drawn, after each step.

    Raises:
        UserError: see `Decoder` and `GenomicTokenizer.encode`; letters that the model has not, or
            a batch below 1.
    """
    if batch < 1:
        raise UserError(f"a batch of {batch} sequences; give 1 or more")
    names = [order.name for order in orders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"two sequences are to be called {twice!r}; names seed their draws, so "
            "give each its own"
        )
    alphabet = _Alphabet.of(model, letters, until_eod)
    prompts = [alphabet.encode(order) for order in orders]
    plan = _plan(orders, fit)
    for start in range(0, len(orders), batch):
        part = slice(start, start + batch)
        rows = [_Row(one, sampling.numbers(one.name, one.length).tolist()) for one in orders[part]]
        _Batch(model, rows, prompts[part], alphabet, kind, plan).run(sampling, watch)
        yield from (row.written() for row in rows)


def _plan(orders: Sequence[Order], fit: Fit | None) -> Plan:
    """How far all of them may come."""
    room = max((one.length - len(one.prefix) for one in orders), default=0)
    return Plan(room, max((len(one.prompt) + one.length for one in orders), default=0), fit)


@dataclass(frozen=True)
class _Alphabet:
    """Letters and their ids; with `eod`, the last id is the end of a document."""

    tokenizer: GenomicTokenizer
    letters: str
    eod: bool

    @classmethod
    def of(cls, model: HyenaGLT, letters: str, eod: bool) -> _Alphabet:
        tokenizer = GenomicTokenizer(compact=model.config.vocab_size == 4)
        if not letters or len(set(letters)) < len(letters):
            raise UserError(f"the letters {letters!r} must be one or more, each once")
        if eod and tokenizer.eod_token_id is None:
            raise UserError(
                "a model of model.vocab_size=4 has no id for the end of a document; write to a "
                "length"
            )
        return cls(tokenizer, letters, eod)

    def encode(self, order: Order) -> Tensor:
        """Ids of prompt and prefix."""
        try:
            return torch.tensor(self.tokenizer.encode(order.prompt + order.prefix))
        except UserError as error:
            raise UserError(f"{order.name}: {error}") from error

    def ids(self, device: torch.device) -> Tensor:
        """Of the letters, and of the end: int64 [K]."""
        ids = self.tokenizer.encode(self.letters)
        return torch.tensor([*ids, EOD] if self.eod else ids, device=device)


class _Batch:
    """Rows side by side; those that have ended leave."""

    def __init__(
        self,
        model: HyenaGLT,
        rows: list[_Row],
        prompts: list[Tensor],
        alphabet: _Alphabet,
        kind: SequenceType | None,
        plan: Plan,
    ) -> None:
        for row in rows:
            row.check()
        self.alphabet, self.rows = alphabet, [row for row in rows if not row.end]
        prompts = [ids for ids, row in zip(prompts, rows, strict=True) if not row.end]
        self.ids = alphabet.ids(model.embedding.weight.device)
        if not self.rows:
            return
        types = None
        if kind is not None and model.types is not None:
            types = torch.full((len(prompts),), int(kind), device=self.ids.device)
        self.decoder = Decoder.read(model, prompts, plan.room, types, plan)

    def run(self, sampling: Sampling, watch: Callable[[int], object]) -> None:
        """Until all have ended."""
        while self.rows:
            logits = self.decoder.logits[:, self.ids].double()
            ruled = self._ruled_out()
            bounded = logits if ruled is None else logits.masked_fill(ruled, float("-inf"))
            number = [row.numbers[len(row.text)] for row in self.rows]
            drawn = sampling.draw(
                bounded, torch.tensor(number, dtype=torch.float64).to(logits.device)
            )
            nats = F.cross_entropy(logits, drawn, reduction="none").tolist()
            for row, place, nat in zip(self.rows, drawn.tolist(), nats, strict=True):
                row.nats += nat
                ends = place == len(self.alphabet.letters)
                row.write(None if ends else self.alphabet.letters[place])
            watch(len(self.rows))
            going = [n for n, row in enumerate(self.rows) if not row.end]
            ids = self.ids[drawn]
            if len(going) < len(self.rows):
                self.rows = [self.rows[n] for n in going]
                chosen = torch.tensor(going, dtype=torch.int64)
                if going:
                    self.decoder.select(chosen)
                    ids = ids[chosen.to(ids.device)]
            if self.rows:
                self.decoder.step(ids)

    def _ruled_out(self) -> Tensor | None:
        """Letters that a constraint forbids, bool [B, K]; None without constraints."""
        if all(row.order.constraint is None for row in self.rows):
            return None
        letters, forbidden = self.alphabet.letters, []
        for row in self.rows:
            constraint = row.order.constraint
            allowed = [True] * len(letters)
            if constraint is not None:
                allowed = constraint.allowed(letters)
            if not any(allowed):
                raise UserError(
                    f"{row.order.name}: none of the letters {letters} may come at position "
                    f"{len(row.order.prefix) + len(row.text) + 1}; codons are of A, C, G and T or U"
                )
            forbidden.append([not may for may in allowed] + [False] * self.alphabet.eod)
        return torch.tensor(forbidden, device=self.ids.device)


def generate(
    model: HyenaGLT,
    prompts: str | Sequence[str],
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    letters: str = LETTERS[SequenceType.DNA],
    until_eod: bool = False,
    fit_modes: int = 0,
) -> list[str]:
    """Go on from each prompt by `length` letters: what was written, without the prompts.

    The draws of the n-th prompt follow from the seed and n; see `Sampling` and `write_sequences`.
    `fit_modes` replaces the long filters of `H` and `G` by as many modes each; 0 leaves them exact.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    orders = [Order(str(number), prompt, length) for number, prompt in enumerate(given, start=1)]
    sampling = Sampling(temperature, top_k, top_p, seed)
    fit = Fit(fit_modes) if fit_modes else None
    found = write_sequences(model, orders, sampling, letters, until_eod=until_eod, fit=fit)
    return [one.text for one in found]
