"""Templates: what they resolve, what they refuse, and that they execute nothing."""

from __future__ import annotations

import pytest

from headrace_rewards.graders.templates import MissingFromSample, MissingPath, Template, TemplateSyntaxError
from headrace_rewards.protocol import Sample

SAMPLE = Sample(
    output_text='{"sum": 41}',
    item={
        "answer": 42,
        "names": ["a", {"b": "deep"}],
        "7": "seven",
        "yes": True,
        "ü": "x",
        "empty": None,
        "a-b": "dash",
        "right answer": "space",
        "réponse": {"é è": "accent"},
        "a.b": "dot",
    },
    finish_reason="length",
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain }} text", "plain }} text"),
        ("", ""),
        ("{{ item.answer }}", "42"),
        ("{{item.answer}}!{{ sample.output_text }}", '42!{"sum": 41}'),
        ("{{ item.names[1].b }} {{ item.names.0 }}", "deep a"),
        ("{{ item.7 }}", "seven"),
        ("{{ item.yes }} {{ item.empty }}", "true null"),
        ("{{ item.ü }} {{ item.a-b }} {{item.right answer}} {{ item.réponse.é è }}", "x dash space accent"),
        (
            """{{ item['answer'] }} {{ item["a.b"] }} {{ item.réponse["é è"] }} {{ item['names'][1]["b"] }}""",
            "42 dot accent deep",
        ),
        ("{{ item.names }}", '["a", {"b": "deep"}]'),
        ("{{ sample.output_json.sum }}", "41"),
        ("{{ sample.choices[0].message.content }} {{ sample.choices.0.finish_reason }}", '{"sum": 41} length'),
    ],
)
def test_renders(source: str, text: str) -> None:
    assert Template.parse(source).render(SAMPLE) == text


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{{ item.answer", "without its"),
        ("{{ }}", "not a path"),
        ("{{ item.answer + 1 }}", "not a path"),
        ("{{ item.__class__() }}", "not a path"),
        ("{{ item['answer'] }", "without its"),
        ("{{ item['ans'wer'] }}", "not a path"),
        ("{{ item.-answer }}", "not a path"),
        ("{{ item. answer }}", "not a path"),
        ("{{ {{ item.answer }} }}", "not a path"),
        ("{{ row.answer }}", "starts with 'row'"),
        ("{{ sample.text }}", "'sample' has no 'text'"),
    ],
)
def test_wrong_syntax_is_known_before_any_row_is_seen(source: str, names: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=names.replace("(", r"\(")):
        Template.parse(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ item.reply }}", "there is no 'item.reply'; 'item' has answer, names"),
        ("{{ item.names[2] }}", "there is no 'item.names.2'; 'item.names' is a list of 2"),
        ("{{ item.names.first }}", "'item.names' is a list"),
        ("{{ item.answer.real }}", "'item.answer' is of type int"),
        ("{{ item.__class__ }}", "there is no 'item.__class__'"),
    ],
)
def test_a_missing_path_says_what_there_is(source: str, message: str) -> None:
    with pytest.raises(MissingPath) as missing:
        Template.parse(source).render(SAMPLE)
    assert message in str(missing.value)


def test_output_that_is_no_json_has_no_keys() -> None:
    template = Template.parse("{{ sample.output_json.sum }}")
    for text in ("not json", "[" * 100_000):
        with pytest.raises(MissingFromSample, match="NoneType"):
            template.render(Sample(output_text=text))
    with pytest.raises(MissingFromSample, match="not JSON"):
        Template.parse("{{ sample.output_json }}").render(Sample("not json"))


def test_a_completion_is_not_blamed_for_a_fault_of_the_row() -> None:
    with pytest.raises(MissingPath, match=r"no 'item\.answer'") as missing:
        Template.parse("{{ sample.output_json.sum }} {{ item.answer }}").render(Sample("not json"))
    assert not isinstance(missing.value, MissingFromSample)
