"""What the API takes and gives; the OpenAPI document is made of these, and requests are checked with them."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hpdval_edge.serve.refusal import Refusal

MOST_MAPS = 16
# Thresholds are float32, which has no number beyond this.
LARGEST = 3.4e38


class Strict(BaseModel):
    """A part of a request; names that it does not have are refused."""

    model_config = ConfigDict(extra="forbid")


class Options(Strict):
    """How labels are chosen and what is told of them."""

    threshold: float | str = Field(
        "fitted",
        description="'fitted' takes each label's own threshold; a number is one score that serves all labels alike.",
    )
    top: int | None = Field(None, ge=1, description="Choose the N best labels instead, whatever their scores.")
    heat_map: list[str] = Field(
        [],
        max_length=MOST_MAPS,
        description="Labels whose heat maps are wanted: the local view's cosine of each patch.",
    )
    scores: Literal["all", "chosen"] = Field("all", description="List all labels, or the chosen ones alone.")

    @field_validator("threshold")
    @classmethod
    def _a_number(cls, threshold: float | str) -> float | str:
        if threshold == "fitted":
            return threshold
        try:
            number = float(threshold)
        except ValueError:
            number = math.nan
        # Written so that NaN fails.
        if not abs(number) <= LARGEST:
            raise ValueError(f"must be 'fitted' or a number of float32, got {threshold!r}")
        return number

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> "Options":
        if self.top is not None and self.threshold != "fitted":
            raise ValueError("top and threshold exclude each other; send one of them")
        return self


class JsonPicture(Strict):
    """A picture in a JSON request."""

    data: str = Field(description="The picture's file (JPEG, PNG, WebP, ...) in base64.")
    name: str = Field("", description="What the result calls it; else its number.")

    @field_validator("name")
    @classmethod
    def _text(cls, name: str) -> str:
        # Half of a surrogate pair is refused: it could not be sent back.
        name.encode()
        return name


class ClassifyRequest(Options):
    """A JSON request of /v1/classify."""

    pictures: list[JsonPicture] = Field(min_length=1, description="One picture or several.")


class ClassifyForm(Options):
    """A multipart request of /v1/classify."""

    file: list[bytes] = Field(description="One picture or several, each as a file with its name.")


class LabelScore(BaseModel):
    """What is known of one label in one picture."""

    label: str
    score: float = Field(description="Cosine of picture and label, about -1 to 1.")
    probability: float = Field(
        description="How often pictures with such a score show the label, 0 to 1, each label by itself; "
        "calibrated on the validation pictures where the bundle was."
    )
    threshold: float = Field(description="The score from which on the label is chosen.")
    fitted: bool = Field(description="Whether the label's own threshold was fitted on validation pictures.")
    chosen: bool = Field(description="Whether the picture is said to show the label.")


class PictureResult(BaseModel):
    """One picture's labels."""

    name: str = Field(description="As sent, else its number in the request, from 1 on.")
    width: int = Field(description="Pixels, turned upright.")
    height: int = Field(description="Pixels, turned upright.")
    labels: list[str] = Field(description="The chosen labels, best first.")
    scores: list[LabelScore] = Field(description="By falling score; all labels, or the chosen ones where asked for.")
    heat_maps: dict[str, list[list[float]]] = Field(
        description="For each label asked for, rows of cosines from top to bottom; together they cover the whole "
        "picture, whatever its shape."
    )


class ClassifyAnswer(BaseModel):
    """Results in the order of the pictures."""

    bundle: str = Field(description="The bundle's name.")
    results: list[PictureResult]


class LabelEntry(BaseModel):
    """One label of the bundle."""

    label: str
    threshold: float = Field(description="The score from which on it is chosen.")
    fitted: bool = Field(description="Whether the threshold was fitted on validation pictures.")


class LabelsAnswer(BaseModel):
    """The bundle's labels, in the order of its columns."""

    bundle: str = Field(description="The bundle's name.")
    backend: str = Field(description="The engine that runs it.")
    precision: str = Field(description="What it computes in.")
    edit: bool = Field(description="Whether this server lets labels be edited.")
    not_by_name: str | None = Field(description="Why labels cannot be added by name here; null where they can.")
    not_by_file: str | None = Field(description="Why labels cannot be added by a file here; null where they can.")
    labels: list[LabelEntry]


class RenameRequest(Strict):
    """New names for labels."""

    names: dict[str, str] = Field(min_length=1, description="Old name: new name.")


class LabelList(Strict):
    """Some labels, or all of them in a new order."""

    labels: list[str] = Field(min_length=1, description="Names of labels.")


class LabelsForm(Strict):
    """Labels embedded elsewhere."""

    file: bytes = Field(description="A file that `hpedge labels embed` wrote and signed.")


class Health(BaseModel):
    """The server answers and its engine runs."""

    status: Literal["ok"]


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="One sentence.")


def parse(model: type[BaseModel], values: Any) -> Any:
    """``values`` as ``model``; Refusal 422 says in one sentence what is wrong first."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise Refusal(422, f"{where}: {reason}." if where else f"{reason}.") from None
