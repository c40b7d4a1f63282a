"""Model: what each chain element computes, holds and emits. Architecture by configuration, never by weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from edgeopt.profiles.base import DType, Profile, Provenance, Strict
from edgeopt.profiles.losses import StaleQuality, StridedLoss, WeightQuality
from edgeopt.units import Bytes, Flop, NonNegativeBytes, NonNegativeFlop

__all__ = [
    "Acceptance", "AdditiveQuality", "Answers", "Architecture", "Block", "CascadedDiffusion", "CausalLM", "Component",
    "Diffusion", "Draft", "Experts", "Gates", "Layer", "Level", "MeasuredRun", "Model", "PatchExchange", "Router",
    "RunsQuality", "Sampler", "StaleQuality", "StridedLoss", "TableQuality", "Variant", "WeightQuality", "WholeQuality",
]  # fmt: skip


class Architecture(Strict):
    """How to build the torch module: a class of a library, its configuration, and where weights come from.

    Without ``checkpoint`` (a local directory or safetensors file) weights are random, drawn per parameter name
    from ``seed``, so that every process draws the same values for the layers it holds.
    """

    library: Literal["transformers", "diffusers"]
    class_name: str = Field(alias="class")
    config: dict[str, Any]
    checkpoint: str | None = None
    seed: int = 0


class Experts(Strict):
    """Routed experts inside a layer: all are resident, ``num_active`` of them work on each token.

    ``weights`` is one expert's share of the layer's weights, ``weights_by_dtype`` its share of the layer's in other
    formats; ``flop_per_token`` of the layer counts active experts.
    """

    num_experts: int = Field(ge=1)
    num_active: int = Field(ge=1)
    weights: Bytes
    weights_by_dtype: dict[DType, NonNegativeBytes] = {}

    def stored_as(self, dtype: str, share: float) -> Experts:
        """Return the experts in another format; where nothing is said of it, they shrink by ``share`` as the layer."""
        guess = float(round(self.weights * share))
        size = next((value for name, value in self.weights_by_dtype.items() if name == dtype), guess)
        return self.model_copy(update={"weights": size, "weights_by_dtype": {}})


class Layer(Strict):
    """``count`` equal elements of a language model's chain, all figures for one element and one sequence.

    ``weights_by_dtype`` holds what ``weights`` would be with the layer's matrices stored in another format. T new
    tokens on C cached ones launch ``kernels`` operations, which beside weights read and write
    ``T traffic_per_token + (C + T) traffic_per_cached_token`` if every one is a kernel of its own (attention fused).
    """

    name: str
    count: int = Field(default=1, ge=1)
    weights: NonNegativeBytes
    flop_per_token: NonNegativeFlop
    flop_per_token_context: NonNegativeFlop
    kv_per_token: NonNegativeBytes
    output_per_token: Bytes
    traffic_per_token: NonNegativeBytes | None = None
    traffic_per_cached_token: NonNegativeBytes | None = None
    kernels: int | None = Field(default=None, ge=1)
    weights_by_dtype: dict[DType, NonNegativeBytes] = {}
    experts: Experts | None = None

    def stored_as(self, dtype: str) -> Layer:
        """Return the layer with its matrices in another format; itself where that says nothing of it."""
        size = next((value for name, value in self.weights_by_dtype.items() if name == dtype), None)
        if size is None:
            return self
        smaller = None if self.experts is None else self.experts.stored_as(dtype, size / self.weights)
        update = {"weights": size, "weights_by_dtype": {}, "experts": smaller}
        return self.model_copy(update=update)


class Gates(Strict):
    """How often the router of each layer with experts, in order, sends a token to each of them.

    ``frequencies[g][e]`` is the part of the tokens that is sent to expert e, so that a row adds up to the experts that
    are chosen for a token. ``pairs[g]`` are the parts that are sent to both experts of a pair (co-activation), in the
    order (0, 1), (0, 2) … (1, 2) …; it may be left out.
    """

    frequencies: list[list[Annotated[float, Field(ge=0, le=1)]]] = Field(min_length=1)
    pairs: list[list[Annotated[float, Field(ge=0, le=1)]]] = []
    source: Provenance


class Acceptance(Strict):
    """How often a target takes what a draft guesses, at one temperature (0: greedy).

    ``by_position[i]`` is the probability that token i + 1 of a draft is taken, given that all before it were.
    """

    temperature: float = Field(ge=0)
    by_position: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    source: Provenance


class Draft(Strict):
    """A smaller model that guesses tokens for a larger one of the same tokenizer; figures as of :class:`CausalLM`.

    Devices' timings of it are those of model ``MODEL.DRAFT``, by the names of the two.
    """

    architecture: Architecture | None = None
    tokenizer: str | None = None
    layers: list[Layer] = Field(min_length=1)
    parameters: int | None = Field(default=None, ge=1)
    acceptance: list[Acceptance] = Field(min_length=1)


class Router(Strict):
    """How likely each model of a family answers a query right, from features of the query: logistic regressions.

    ``features`` are columns ``feature:NAME`` of the trace; ``length``, ``has T-T-…`` and ``ends T-T-…`` are taken from
    the tokens of queries that were not recorded, others come with a query. ``weights`` are by model one number per
    feature, and a constant (:mod:`edgeopt.profiles.routers`).
    """

    features: list[str] = Field(min_length=1)
    weights: dict[str, list[float]]
    source: Provenance


class Answers(Strict):
    """What every model of a family answered to the same queries, recorded; :mod:`edgeopt.profiles.answers` reads it.

    ``trace`` is a CSV file, ``queries`` a safetensors file with their tokens, both relative to the profile. ``router``
    tells queries apart by what the models will make of them.
    """

    trace: str
    queries: str | None = None
    router: Router | None = None
    source: Provenance


class CausalLM(Profile):
    """A decoder-only language model: embedding, blocks, head.

    ``parameters`` counts each parameter once. With ``tied_embeddings`` embedding and head are one matrix, which is
    part of the weights of both: a device that holds either holds it.

    ``tokenizer`` names what turns text into token ids: models that exchange tokens must have the same. ``prompts`` is
    a local safetensors file with ``prompts`` (rows, tokens) that requests begin with; without it they are random.
    ``drafts`` are smaller models of the family, by name: they guess for this one, or answer before it (``answers``).
    ``gates`` is how often a mixture's experts are chosen.
    ``quality`` says in which formats weights may be stored, and what that loses.
    """

    kind: Literal["model"] = "model"
    family: Literal["causal_lm"]
    architecture: Architecture | None = None
    dtype: DType
    layers: list[Layer] = Field(min_length=1)
    token: Bytes
    parameters: int | None = Field(default=None, ge=1)
    tied_embeddings: bool = False
    tokenizer: str | None = None
    prompts: str | None = None
    drafts: dict[str, Draft] = {}
    answers: Answers | None = None
    gates: Gates | None = None
    quality: WeightQuality | None = None


class Component(Strict):
    """A text encoder or a decoder: runs once per request.

    ``activations`` is the most that is alive at once, ``traffic`` all that its kernels read and write beside weights,
    if every operation is a kernel of its own and attention is fused. Several encoders that run one after the other
    are ``parts`` by name; the figures around them are theirs together, and each part has its own architecture.
    """

    architecture: Architecture | None = None
    weights: Bytes
    flop: Flop
    output: Bytes
    activations: NonNegativeBytes
    traffic: NonNegativeBytes | None = None
    kernels: int | None = Field(default=None, ge=1)
    parameters: int | None = Field(default=None, ge=1)
    parts: dict[str, Component] = {}


class Block(Strict):
    """A piece of one denoising step, in order of execution.

    ``output`` crosses a cut made after the block: every tensor that depends on the latent, was made up to here and is
    read later (a U-Net's skips, both streams of a two-stream transformer). What depends on the timestep, on positions
    or on the conditioning alone is not in it: each device makes that itself. ``legal`` says whether the library can be
    cut there; the last block's output is the step's result. ``traffic`` and ``kernels`` as in :class:`Component`.
    """

    name: str
    weights: NonNegativeBytes
    flop: NonNegativeFlop
    output: NonNegativeBytes
    traffic: NonNegativeBytes | None = None
    kernels: int | None = Field(default=None, ge=0)
    legal: bool = True


class PatchExchange(Strict):
    """What a device that has some rows of the latent gives to each other one, per step and image.

    Rows are shared out ``multiple`` at a time. Keys and values of attention are ``per_row`` bytes of its own rows,
    statistics of group norms ``sums`` bytes; the rows at its edges, ``halo`` bytes, go to the neighbour alone. All
    that takes ``messages``, of which ``halo_messages`` to the neighbour alone.
    """

    multiple: int = Field(ge=1)
    messages: int = Field(ge=0)
    halo_messages: int = Field(default=0, ge=0)
    per_row: NonNegativeBytes
    halo: NonNegativeBytes = 0.0
    sums: NonNegativeBytes = 0.0


class Variant(Strict):
    """One denoiser of the family; ``flop`` is one denoising step of one image.

    ``activations``, ``traffic`` and ``kernels`` as in :class:`Component`; ``blocks`` add up to ``weights`` (a weight
    that two blocks use is in both), ``flop``, ``traffic`` and ``kernels``. ``common_weights`` are those that a device
    needs for any block beside the block's own, since what they make crosses no cut (the embedding of the timestep).
    ``patch`` is there for denoisers that can work on some rows of the latent.
    """

    architecture: Architecture | None = None
    weights: Bytes
    flop: Flop
    activations: NonNegativeBytes
    traffic: NonNegativeBytes | None = None
    kernels: int | None = Field(default=None, ge=1)
    parameters: int | None = Field(default=None, ge=1)
    common_weights: NonNegativeBytes | None = None
    patch: PatchExchange | None = None
    blocks: list[Block] = []


class AdditiveQuality(Strict):
    """quality = base + sum over steps of ``loss[variant]``, measured at ``steps`` steps and resampled to others.

    Smaller is better. ``fit_error`` is the root mean square error against sampled plans that were not in the fit,
    ``floor`` what real data scores against real data, both in units of the metric. ``margin`` is the fraction by which
    samples may exceed their prediction: plans that have to keep a quality leave it.
    """

    form: Literal["additive"]
    metric: str
    base: float
    steps: int = Field(ge=1)
    loss: dict[str, list[float]]
    handoff: float = 0.0
    fit_error: float | None = None
    margin: float | None = Field(default=None, ge=0)
    floor: float | None = None
    source: Provenance


class TableQuality(Strict):
    """Measured quality when ``first`` runs a leading fraction of the steps and ``second`` the rest.

    ``floor`` is what real data scores against real data.
    """

    form: Literal["table"]
    metric: str
    first: str
    second: str
    fraction: list[float] = Field(min_length=2)
    quality: list[float] = Field(min_length=2)
    floor: float | None = None
    source: Provenance


class WholeQuality(Strict):
    """Measured quality of runs with one variant throughout; nothing is known of mixtures, so plans may not mix.

    ``margin`` as in :class:`AdditiveQuality`, where the figures are no samples of their own; ``floor`` is what real
    data scores against real data.
    """

    form: Literal["whole"]
    metric: str
    quality: dict[str, float] = Field(min_length=1)
    margin: float | None = Field(default=None, ge=0)
    floor: float | None = None
    source: Provenance


class Sampler(Strict):
    """The diffusers scheduler that drives the steps; ``config`` as its ``from_config`` takes it."""

    class_name: str = Field(alias="class")
    config: dict[str, Any] = {}


class Diffusion(Profile):
    """A family of denoisers sharing one latent space, with a text encoder and a decoder."""

    kind: Literal["model"] = "model"
    family: Literal["diffusion"]
    dtype: DType
    sampler: Sampler
    prompt: Bytes
    conditioning: NonNegativeBytes
    latent: Bytes
    latent_shape: list[int] = Field(min_length=1)
    text_encoder: Component | None = None
    variants: dict[str, Variant] = Field(min_length=1)
    decoder: Component | None = None
    quality: AdditiveQuality | TableQuality | WholeQuality | None = Field(default=None, discriminator="form")
    stale: StaleQuality | None = None


class Level(Strict):
    """One resolution of a cascade: its denoisers share one latent space.

    From the second level on a denoiser sees, behind its own channels, those of the image that the level before made,
    enlarged to its own size and with Gaussian noise of standard deviation ``augmentation`` added.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    sampler: Sampler
    latent: Bytes
    latent_shape: list[int] = Field(min_length=3, max_length=3)
    augmentation: float | None = Field(default=None, ge=0)
    variants: dict[str, Variant] = Field(min_length=1)


class MeasuredRun(Strict):
    """What a run made that was measured: each level's variant and number of steps, and the quality of its images."""

    variants: list[str]
    steps: list[int]
    quality: float


class RunsQuality(Strict):
    """Measured quality of whole runs through both levels; plans choose among these runs.

    ``floor`` is what real data scores against real data.
    """

    form: Literal["runs"]
    metric: str
    runs: list[MeasuredRun] = Field(min_length=1)
    floor: float | None = None
    source: Provenance


class CascadedDiffusion(Profile):
    """Levels of growing resolution: the first draws an image from noise, each further one enlarges it by denoising."""

    kind: Literal["model"] = "model"
    family: Literal["cascaded_diffusion"]
    dtype: DType
    prompt: Bytes
    conditioning: NonNegativeBytes
    text_encoder: Component | None = None
    levels: list[Level] = Field(min_length=2)
    quality: RunsQuality | None = None

    def level(self, index: int) -> Diffusion:
        """Return one level as a family of its own, which shares the cascade's name and text encoder."""
        level = self.levels[index]
        return Diffusion(
            name=self.name,
            source=self.source,
            family="diffusion",
            dtype=self.dtype,
            sampler=level.sampler,
            prompt=self.prompt,
            conditioning=self.conditioning,
            latent=level.latent,
            latent_shape=level.latent_shape,
            text_encoder=self.text_encoder,
            variants=level.variants,
        )


Model = CausalLM | Diffusion | CascadedDiffusion
