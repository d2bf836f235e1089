import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from svdflow.common.config import (
    Settings,
    fault_of,
    load_profile,
    load_settings,
    merge,
    parse_override,
    profile_names,
    sendable,
)
from svdflow.common.errors import ConfigError


class Axis(Settings):
    percent: float = 25.0


class Example(Settings):
    motion: Axis = Axis()
    names: tuple[str, ...] = ("a",)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_an_override_wins_over_the_profile_which_wins_over_its_base_which_wins_over_the_default(tmp_path):
    base = write(tmp_path / "base.yaml", "example: {motion: {percent: 1}, names: [b]}")
    top = write(tmp_path / "top.yaml", f"extends: {base}\nexample: {{motion: {{percent: 2}}}}")
    assert load_settings(Example, "example", base).motion.percent == 1
    assert load_settings(Example, "example", top) == Example(motion=Axis(percent=2), names=("b",))
    assert load_settings(Example, "example", top, {"example.motion.percent": 3}).motion.percent == 3
    assert load_settings(Example, "other", top) == Example()


def test_a_profile_lies_on_the_file_beside_it_wherever_the_command_is_typed(tmp_path, monkeypatch):
    write(tmp_path / "base.yaml", "example: {motion: {percent: 1}, names: [b]}")
    top = write(tmp_path / "top.yaml", "extends: base.yaml\nexample: {motion: {percent: 2}}")
    assert load_settings(Example, "example", top) == Example(motion=Axis(percent=2), names=("b",))
    monkeypatch.chdir(tmp_path)
    assert load_settings(Example, "example", "top.yaml") == Example(motion=Axis(percent=2), names=("b",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"extends: p.yaml", r"p\.yaml: extends itself"),
        (b"extends: [local]", r"p\.yaml: extends: \['local'\] is no name of a profile"),
        (b"extends: nothing", "profile 'nothing' is neither"),
        (b"extends: ''", "profile '' is neither"),
        (b"example: 5", "example is no mapping of settings: 5"),
        (b"example: [a", r"p\.yaml: is no YAML"),
        (b"\xff\xfe", r"p\.yaml: is no YAML"),
        (b"- a", r"p\.yaml: a profile is a mapping"),
    ],
)
def test_a_file_that_is_no_profile_is_told_in_one_line(text, says, tmp_path):
    (tmp_path / "p.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=says) as told:
        load_profile(str(tmp_path / "p.yaml"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"example.motion.percnt": 3}, r"example\.motion\.percnt: there is no such setting \(did you mean percent\?\)"),
        ({"example.name": ["b"]}, r"example\.name: there is no such setting \(did you mean names\?\)"),
        ({"example.colour": "red"}, r"example\.colour: there is no such setting$"),
        ({"example.motion.percent": "many"}, "example.motion.percent"),
        ({"example.motion": 3}, "example.motion"),
        ({"example.names": "b"}, r"example\.names: .*a list; write \[b\]$"),
        ({"example": 3}, "example is no mapping of settings: 3"),
    ],
)
def test_a_wrong_setting_is_refused_and_named(tmp_path, overrides, field):
    profile = write(tmp_path / "p.yaml", "example: {}")
    with pytest.raises(ConfigError, match=field):
        load_settings(Example, "example", profile, overrides)


def test_a_fault_between_settings_names_the_one_to_change(tmp_path):
    class Halves(Settings):
        whole: int = 4
        parts: int = 2

        @model_validator(mode="after")
        def _even(self):
            if self.whole % self.parts:
                raise fault_of("whole", f"{self.whole} does not split into {self.parts}")
            return self

    profile = write(tmp_path / "p.yaml", "halves: {whole: 5}")
    with pytest.raises(ConfigError) as refused:
        load_settings(Halves, "halves", profile)
    assert str(refused.value) == "halves.whole: 5 does not split into 2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", ("a.b", 3)),
        ("a.b=1e-4", ("a.b", 1e-4)),
        ("a=true", ("a", True)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", "")),
    ],
)
def test_an_override_means_what_it_says(text, expected):
    assert parse_override(text) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1, max_size=2), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.sampled_from(["a.b", "a.c", "d.e"]), VALUES))
def test_overrides_mean_the_same_after_their_way_through_a_pipeline_which_knows_no_none(tmp_path_factory, overrides):
    from google.protobuf.json_format import MessageToDict
    from kfp.compiler.pipeline_spec_builder import to_protobuf_value

    profile = write(tmp_path_factory.mktemp("p") / "p.yaml", "{}")
    travelled = MessageToDict(to_protobuf_value(sendable(overrides)))
    assert load_profile(profile, travelled) == load_profile(profile, overrides)


@pytest.mark.parametrize("text", ["a.b", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError):
        parse_override(text)


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="local"):
        load_profile("loca")


def test_every_shipped_profile_holds_for_every_step():
    from svdflow.pipelines.registry import SETTINGS, resolve_settings

    for name in profile_names():
        assert set(resolve_settings(name, {})) == set(SETTINGS)


_TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
_MAPS = st.dictionaries(st.sampled_from("abc"), _TREES, max_size=3)


@given(_MAPS, _MAPS)
def test_merging_keeps_all_of_the_top_and_leaves_its_arguments_alone(base, top):
    before = repr((base, top))
    merged = merge(base, top)
    assert repr((base, top)) == before
    assert merge(merged, top) == merged
    assert merge(base, {}) == base == merge({}, base)
    assert merged.keys() == base.keys() | top.keys()
    assert all(merged[key] == value for key, value in top.items() if not isinstance(value, dict))
