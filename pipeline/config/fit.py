"""How the coefficients of a learned growth method are fitted, inside an expansion stage: the keys of `fit:`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.deepspeed_keys import DeepSpeedKeys
from pipeline.config.number_formats import MatmulPrecision
from pipeline.durations import Duration, PositiveDuration
from pipeline.optim.optimizers import AdamW
from pipeline.optim.parameter_groups import RateFactors
from pipeline.records.strict import Strict

PUBLISHED_WARMUP = 10_000
"""Steps over which the released code of LiGO warms up, of which it takes 100 (run_mlm.py's default for pretraining)."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"optimizer": {"weight_decay": 0.0}},
    "published": {
        "peak": 2.0e-4,
        "warmup": PUBLISHED_WARMUP,
        "decay": "linear",
        "optimizer": {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1},
        "dropout": None,
    },
}
MOST_STEPS = 1_000_000
Attention = Annotated[
    Literal["auto", "sdpa", "eager"],
    Field(
        description="sdpa: torch's fused kernels; eager: plain matrix products; auto: on CPUs the faster one where the "
        "stage begins, measured there, else sdpa; a resume keeps it"
    ),
]
Compile = Annotated[
    bool | Literal["auto"],
    Field(
        description="whether torch.compile compiles the layers; auto: on GPUs where it works; decided where the stage "
        "begins, a resume keeps it"
    ),
]


class FitChoice(Strict):
    """The recipe. `published` is LiGO's: its rate of 2e-4 comes at the end of 10,000 warm-up steps, so that 100 steps
    never go beyond 2e-6. What is given beside a preset counts."""

    preset: Literal["default", "published"] = "default"
    steps: int = Field(100, ge=0, le=MOST_STEPS, description="0: the coefficients stay as the method starts them")
    batch: int | None = Field(None, ge=1, description="samples per step; default: that of the training stage behind")
    micro_batch: int | None = Field(None, ge=1, description="samples per rank and pass; default batch / ranks")
    peak: float = Field(3.0e-4, gt=0, description="learning rate behind the warm-up")
    warmup: int = Field(10, ge=0, le=MOST_STEPS, description="steps; as many as are taken where it is longer")
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    optimizer: AdamW = AdamW()
    dropout: float | None = Field(
        0.0,
        ge=0,
        lt=1,
        description="of the target while it is fitted, without stochastic depth; null: the model's, both of them",
    )
    precision: Literal["fp32", "bf16"] | None = Field(None, description="default: bf16 where the stage behind has it")
    matmul_precision: MatmulPrecision | None = Field(None, description="default: that of the training stage behind")
    zero_stage: Literal[0, 1, 2] = 1
    attention: Attention = "auto"
    compile: Compile = "auto"
    deepspeed: DeepSpeedKeys = Field(DeepSpeedKeys(), description="keys of DeepSpeed's own config: docs/deepspeed.md")
    evaluate_every: PositiveDuration = Duration.parse("50 steps")
    save_every: PositiveDuration = Duration.parse("50 steps")
    log_every: int = Field(1, ge=1)
    target: str | None = Field(None, description="a config in the run's folder, set by lemon expand --data")
    source_config: str | None = Field(None, description="the source's config.json, where its folder holds none")
    accept: bool = Field(False, description="publish a result whose loss ends above its start, too")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, keys: Any) -> Any:
        """The preset's values under those that are given, the optimizer's key by key."""
        if not isinstance(keys, dict) or not isinstance(keys.get("optimizer", {}), dict):
            return keys
        preset = PRESETS.get(str(keys.get("preset", "default")), {})
        return {**preset, **keys, "optimizer": {**preset.get("optimizer", {}), **keys.get("optimizer", {})}}

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.optimizer.rates != RateFactors():
            raise ValueError("optimizer.rates are of a model's parameters, coefficients have one rate; leave them out")
        return self

    @model_validator(mode="after")
    def _deepspeed_has_effect(self) -> Self:
        self.deepspeed.require_effect(self.zero_stage, self.precision or "fp32")
        return self

    @model_validator(mode="after")
    def _something_moves(self) -> Self:
        if self.steps == 1 and self.warmup:
            raise ValueError(f"steps 1 has rate 0, the first of a warm-up of {self.warmup} steps; choose warmup 0")
        return self

    @property
    def schedule(self) -> dict[str, Any]:
        """The keys of a training stage's schedule. A warm-up that is longer than the fit is cut: the rates of its steps
        are the same."""
        steps = max(1, self.steps)
        warmup = min(self.warmup, steps - 1)
        peak = self.peak * warmup / self.warmup if self.warmup >= steps and warmup else self.peak
        return {"kind": self.decay, "peak": peak, "warmup": f"{warmup} steps", "horizon": f"{steps} steps"}
