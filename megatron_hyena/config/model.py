"""The model section: everything the architecture is, nothing about how it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_hyena.config.alphabet import check_alphabet
from megatron_hyena.config.filters import check_hyena_filter
from megatron_hyena.config.merging import check_merging
from megatron_hyena.config.motifs import check_motifs
from megatron_hyena.config.pattern import parse_pattern
from megatron_hyena.config.seed_names import accepts_seed_names, own_fields
from megatron_hyena.errors import UserError


@accepts_seed_names
@dataclass(frozen=True)
class HyenaGLTConfig:
    """Architecture of a Hyena-GLT model."""

    pattern: str = "[SMLA]2"
    """One sign per block: `S` Hyena-SE, `M` Hyena-MR, `L` Hyena-LI, `H` Hyena of order N, `G`
    the same with genomic branches, `A` attention, `W` sliding-window attention; `[...]n` repeats;
    `(...)` merges positions inside, `(...)0.75` with a merge ratio of its own; white space is
    ignored."""
    hidden_size: int = 256
    """Channels of the residual stream and of each mixer."""
    num_heads: int = 8
    """Heads of `A` and `W`."""
    ffn_hidden_size: int = 0
    """Inner width of the gated MLP; 0 takes 8/3 of `hidden_size`, rounded up to a multiple of
    64; -1 leaves the MLP out of every block."""
    vocab_size: int = 256
    """Token ids; a byte is its own id. 512 matches Evo 2's checkpoints; 4 is for
    `GenomicTokenizer(compact=True)`, without padding and hidden bytes: causal models only."""
    causal: bool = True
    """A position sees itself and what stands before it in its document; `false`: the whole
    document, for `train.objective=mlm`. `A` and `W` then attend to both sides; of the other
    layers each block has two, one for each direction."""
    num_filter_groups: int = 0
    """Groups of channels that share a filter in `S` and `M`; 0 gives each 16 channels one."""
    se_filter_length: int = 7
    """Taps of `S`."""
    mr_filter_length: int = 128
    """Taps of `M`."""
    mr_decay: str = "strong"
    """Slowest decay over the taps of `M`: `weak`, `normal` or `strong` (0.01, 0.1 or 1 nat
    over the filter's length; the fastest is 100); `none` does not decay the taps."""
    se_skip: bool = False
    """`S` adds its input by a weight per channel, as `M` and `L` do."""
    li_modes: int = 16
    """Exponential modes of each `L` filter."""
    li_poles: str = "real"
    """Modes of `L` decay (`real`), or decay and oscillate (`complex`: Evo 1)."""
    hyena_order: int = 2
    """Order N of `H` and `G`: N gates and N filters."""
    hyena_filter: str = "implicit"
    """Long filters of `H` and `G`: `implicit`, `genomic` (an explicit bank that starts from
    `model.motifs`), or a name that the program has registered."""
    hyena_filter_order: int = 64
    """Width of the small network that makes the `implicit` filters."""
    hyena_filter_size: int = 0
    """Taps of the long filters, which then see no further back; 0 gives `genomic` ones 128, and all
    others the whole sequence."""
    hyena_output_gate: bool = False
    """`H` and `G` multiply their output by a sigmoid gate of their input."""
    use_fft_conv: bool = True
    """Convolutions of `H` and `G` by FFT; `false` takes products with Toeplitz matrices, faster for
    few taps, and needs filters of at most 512 taps. The numbers are the same."""
    max_sequence_length: int = 65536
    """Longest sequence of `H` and `G`, in bytes, where their filters reach over all of it;
    `implicit` ones are functions of position / this."""
    motif_length: int = 10
    """Taps of the motif branch of `G`."""
    motifs: tuple[str, ...] = ("cg_dinucleotide", "tata_box", "palindrome")
    """What the motif branch of `G` and the `genomic` filters start from, on both strands: IUPAC
    letters such as `TATAWAW`, or the names `cg_dinucleotide` (CG), `tata_box` (TATAWAW) and
    `palindrome` (CANNTG). Each pattern takes four channels."""
    structure_scales: int = 4
    """Distances per channel over which the structure branch of `G` averages."""
    attention_window: int = 512
    """Positions a `W` layer sees, the current one included."""
    rope_base: float = 10000.0
    """Base of the rotary position angles of `A` and `W`."""
    rope_scaling: float = 1.0
    """Positions are divided by this (linear interpolation, arXiv:2306.15595)."""
    rope_bf16: bool = False
    """RoPE's frequencies are rounded to bf16, as in published files of Evo 2."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    norm_eps_outside: bool = False
    """`norm_eps` is added to the root of the mean square instead: Evo 1, Evo 2, savanna."""
    projection_bias: bool = False
    """Biases on projections and featurizers (Evo 1); not with merged stages."""
    tie_embeddings: bool = True
    """The head shares the embedding's matrix."""
    mlp_activation: str = "gelu"
    """Gate activation of the MLP: `gelu`, `silu`, `identity`, or `evo2`: `gelu` in the first block
    and `identity` in all others, as Evo 2 was trained."""
    type_embedding: str = "none"
    """Add a vector for the type of sequence, given by the track `type`; the name set here (`dna`,
    `rna`, `protein` or `mixed`) is the type of input without that track. `none`: no such vector."""
    init_std: float = 0.02
    """Standard deviation of initial matrices; those that write to the residual stream are
    divided by the square root of twice the number of blocks."""
    merger: str = "wcc"
    """How positions are merged on entry to `( )`: `wcc` (a learned router opens chunks), `hnet`
    (the same with a cosine router, chunks stand for their first position), `static` (chunks of
    equal length) or `precomputed` (chunks begin where the track `boundaries` says)."""
    merge_ratio: float = 0.5
    """Fraction of positions that merging removes."""
    window: int = 128
    """Positions that share a budget of chunks; a document begins at a multiple of it."""
    slots: int = 0
    """Chunks a window can hold; 0 takes the expected number and two standard deviations."""
    threshold: float = 0.5
    """A position opens a chunk where its similarity to the one before is below this, before the
    rate controller shifts it."""
    similarity: str = "mlp"
    """Similarity of neighbours: `mlp`, two layers of both, or `cosine` of two projections."""
    router_temperature: float = 1.0
    """Divides the router's logits."""
    router_input: str = "encoder"
    """What the router sees: `encoder`, the stage's input, or `trunk`, a small network over the last
    64 bytes, whose decisions are the same in every layout and precision."""
    merge_fn: str = "linear"
    """A chunk's vector, of the mean of the chunk before it and the state at its opening: `linear`
    of both, `select` the latter, or their `mean`."""
    smoothing: str = "ema"
    """Chunks are smoothed on exit by their probabilities (`ema`), or not (`none`)."""
    adaptive: bool = False
    """Merge more where sequence is simple, less where it is complex, with the same total."""
    complexity: str = "kmer"
    """Complexity for `adaptive`: `kmer`, the entropy of 3-mers of the last 64 bytes, `window`,
    learned from means of earlier windows, or (not causal) `global`, of the document's mean."""
    gamma: float = 2.0
    """Strength of `adaptive`, logits per unit of complexity."""
    ratio_loss: str = "lagged"
    """Loss that pulls the rate towards `merge_ratio`: `lagged` or `none`."""
    ratio_weight: float = 0.02
    """Weight of that loss."""
    controller_eta: float = 1.0
    """Share of the distance to the asked rate by which the router is shifted after each step."""

    def __post_init__(self) -> None:
        signs = parse_pattern(self.pattern)
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be 1 or more")
        for name in POSITIVE_NUMBERS:
            if not getattr(self, name) > 0:
                raise UserError(f"model.{name}={getattr(self, name)} must be greater than 0")
        if self.num_filter_groups < 0:
            raise UserError(
                f"model.num_filter_groups={self.num_filter_groups} must be 0 (one group for 16 "
                "channels) or more"
            )
        if set("AW") & set(signs) and self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"model.hidden_size={self.hidden_size} must be a multiple of twice "
                f"model.num_heads={self.num_heads}: RoPE turns pairs of channels of each head"
            )
        if set("SM") & set(signs) and self.hidden_size % self.groups:
            raise UserError(
                f"model.hidden_size={self.hidden_size} is not a multiple of the filter groups "
                f"({self.groups}); change model.num_filter_groups"
            )
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                *others, last = choices
                raise UserError(
                    f"model.{field}={getattr(self, field)!r}: use {', '.join(others)} or {last}"
                )
        self._check_filters(signs)
        check_merging(self)
        check_alphabet(self)

    def _check_filters(self, signs: tuple[str, ...]) -> None:
        """The long filters of `H` and `G`, and the motifs with whatever starts from them."""
        check_hyena_filter(self.hyena_filter)
        starts = {"motif_length": self.motif_length} if "G" in signs else {}
        if self.hyena_filter == "genomic" and set("HG") & set(signs):
            starts["hyena_filter_size"] = self.bank_taps
        _check_taps(self)
        check_motifs(self.motifs, starts, self.hidden_size)
        object.__setattr__(self, "motifs", tuple(self.motifs))  # a list, where read from JSON

    @property
    def signs(self) -> tuple[str, ...]:
        """One sign per block."""
        return parse_pattern(self.pattern)

    @property
    def groups(self) -> int:
        """Filter groups of `S` and `M`."""
        return self.num_filter_groups or max(1, self.hidden_size // 16)

    @property
    def ffn(self) -> int:
        """Inner width of the MLP; 0 for none."""
        if self.ffn_hidden_size < 0:
            return 0
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 64) * 64

    @property
    def hyena_taps(self) -> int:
        """Taps of the longest filter of `H` and `G`."""
        return self.explicit_taps or self.max_sequence_length

    @property
    def explicit_taps(self) -> int:
        """Taps of the filters of `H` and `G`; 0 where they reach over the whole sequence."""
        return self.bank_taps if self.hyena_filter == "genomic" else self.hyena_filter_size

    @property
    def longest_sequence(self) -> int | None:
        """Most bytes of a sequence; None for any, where no filter reaches over all of it."""
        bounded = set("HG") & set(self.signs) and not self.explicit_taps
        return self.max_sequence_length if bounded else None

    @property
    def bank_taps(self) -> int:
        """Taps of `genomic` filters."""
        return self.hyena_filter_size or BANK_TAPS

    @classmethod
    def own_fields(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`fields`, under any of their names, as fields of this class (UserError: unknown)."""
        return own_fields(fields, [field.name for field in dataclasses.fields(cls)])

    @classmethod
    def from_seed(cls, **fields: Any) -> HyenaGLTConfig:
        """The same as the constructor, for type checkers: takes the names of `docs/seeds.md`."""
        return cls(**fields)


def _check_taps(config: HyenaGLTConfig) -> None:
    taps, longest = config.hyena_filter_size, config.max_sequence_length
    if taps < 0 or (config.hyena_filter == "implicit" and taps > longest):
        raise UserError(
            f"model.hyena_filter_size={taps} must lie between 0 (the whole sequence) and "
            f"model.max_sequence_length={longest}"
        )
    if not config.use_fft_conv and config.hyena_taps > DIRECT_TAPS:
        raise UserError(
            f"model.use_fft_conv=false needs model.hyena_filter_size from 1 to {DIRECT_TAPS}, not "
            f"{taps}: the matrices of longer filters do not fit in memory"
        )


BANK_TAPS = 128
"""Taps of `genomic` filters where none are given."""
DIRECT_TAPS = 512
"""Most taps of `H` without FFT: a channel's Toeplitz matrices then hold a million numbers."""
SEQUENCE_TYPES = ("dna", "rna", "protein", "mixed")
"""Values 0 to 3 of the track `type`."""
CHOICES = {
    "mr_decay": ("weak", "normal", "strong", "none"),
    "li_poles": ("real", "complex"),
    "mlp_activation": ("gelu", "silu", "identity", "evo2"),
    "type_embedding": ("none", *SEQUENCE_TYPES),
}
POSITIVE = (
    "hidden_size",
    "num_heads",
    "vocab_size",
    "se_filter_length",
    "mr_filter_length",
    "li_modes",
    "hyena_order",
    "hyena_filter_order",
    "max_sequence_length",
    "motif_length",
    "structure_scales",
    "attention_window",
)

POSITIVE_NUMBERS = ("rope_base", "rope_scaling", "norm_eps", "init_std")

MR_SLOWEST_DECAY = {"weak": -2.0, "normal": -1.0, "strong": 0.0, "none": None}
"""log10 of the slowest decay rate of `M` over its taps; the fastest is 2. None: no decay."""
