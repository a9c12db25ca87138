"""Names and values that MLflow refuses are mapped, and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, _validate_param_name

from analysis.store import decode, from_params
from attnres_lab.tracking.names import encode, factors, to_params


@given(st.text(min_size=1, max_size=30) | st.text("_x./a5f=(", min_size=1, max_size=12))
def test_every_name_is_taken_and_comes_back(name: str) -> None:
    """MLflow's own validation takes the mapped name, and decoding gives the name."""
    _validate_param_name(encode(name))
    assert decode(encode(name)) == name


@given(
    st.dictionaries(
        st.sampled_from(["model.dim", "a=b", "größe", "x/2"]),
        st.text(max_size=20) | st.text("ä€x", max_size=3).map(lambda t: t * 5000),
    )
)
def test_values_of_any_length_come_back(values: dict[str, str]) -> None:
    """No stored value is longer than MLflow keeps."""
    params = to_params(values)
    assert all(len(value) <= MAX_PARAM_VAL_LENGTH for value in params.values())
    assert from_params(params) == values


def test_ordinary_names_stay_as_they_are() -> None:
    """A reader of the store sees the dotted keys."""
    for name in ("model.residual.num_blocks", "val/loss", "perf/step_seconds", "size"):
        assert encode(name) == name


def test_factors_are_the_numbers() -> None:
    """Text, flags and what is not finite stay out; whatever number a plan varies is one."""
    assert factors(
        {
            "model.dim": 32,
            "train.batch_size": 8,
            "data.val_tokens": 4096,
            "optim.lr": 0.1,
            "name": "x",
            "on": True,
            "big": float("inf"),
            "none": None,
        }
    ) == {
        "factor/model.dim": 32.0,
        "factor/train.batch_size": 8.0,
        "factor/data.val_tokens": 4096.0,
        "factor/optim.lr": 0.1,
    }


def test_a_number_looks_the_same_from_plan_and_config() -> None:
    """4e5, 400000 and 400000.0 are one value, so nothing seems to have changed."""
    assert to_params({"a": 400000.0}) == to_params({"a": 400000}) == {"a": "400000"}
