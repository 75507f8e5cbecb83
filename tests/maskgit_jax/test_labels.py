import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.labels import find_label, imagenet_class_names

NAMES = imagenet_class_names()
SHAPES = ("ball", "box", "traffic light")


def _error(text, class_names=NAMES) -> str:
    with pytest.raises(InputError) as caught:
        find_label(text, class_names)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_imagenet_names_are_in_the_usual_order():
    assert len(NAMES) == 1000
    known = {
        0: "tench, Tinca tinca",
        1: "goldfish, Carassius auratus",
        35: "mud turtle",
        134: "crane",
        207: "golden retriever",
        517: "crane",
        980: "volcano",
        999: "toilet tissue, toilet paper, bathroom tissue",
    }
    assert {label: NAMES[label] for label in known} == known
    assert all(name == name.strip() != "" for name in NAMES)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (35, 35),
        (0, 0),
        (999, 999),
        ("35", 35),
        (" 007 ", 7),
        ("+980", 980),
        ("mud turtle", 35),
        ("  Mud   Turtle ", 35),
        ("MUD_TURTLE", 35),
        ("mud-turtle", 35),
        ("mudturtle", 35),
        ("golden retriever", 207),
        ("bathroom tissue", 999),
        ("Toilet Paper", 999),
        ("tinca tinca", 0),
        ("tench,Tinca_tinca", 0),
        ("maillot, tank suit", 639),
        ("tank suit", 639),
        ("jack-o'-lantern", 607),
    ],
)
def test_a_class_is_found_by_number_and_by_any_name(text, label):
    assert find_label(text, NAMES) == label


def test_every_entry_finds_itself_or_is_reported_ambiguous():
    ambiguous = []
    for label, entry in enumerate(NAMES):
        try:
            assert find_label(entry, NAMES) == label
        except InputError as error:
            assert f"{label} ({entry})" in str(error)
            ambiguous.append(label)
    # Entries that are one lemma, which another class has too.
    assert ambiguous == [86, 134, 474, 517, 594, 638, 657]


def test_shared_names_list_the_numbers():
    assert _error("Crane") == (
        "label 'Crane' names several classes; give the number: 134 (crane), 517 (crane)"
    )
    assert "638 (maillot), 639 (maillot, tank suit)" in _error("maillot")


def test_near_names_are_suggested():
    assert _error("mud turtel").startswith(
        "unknown label 'mud turtel': did you mean 'mud turtle' (35), "
    )
    assert "'golden retriever' (207)" in _error("goldn retreiver")
    # Far in edits, yet one word of the name.
    assert _error("bear").startswith(
        "unknown label 'bear': did you mean 'koala bear' (105), 'brown bear' (294), "
    )
    assert "'crane' (134), 'crane' (517)" in _error("crain")
    assert _error("bal", SHAPES) == "unknown label 'bal': did you mean 'ball' (0)?"


def test_suggestions_stay_few():
    assert _error("dog").count("(") <= 5


def test_without_a_near_name_the_choice_is_shown():
    assert _error("xqzw", SHAPES) == (
        "unknown label 'xqzw': the classes are 'ball' (0), 'box' (1), 'traffic light' (2)"
    )
    assert _error("xqzwxqzw") == (
        "unknown label 'xqzwxqzw': give a number from 0 to 999 or a class name such as 'tench'"
    )


@pytest.mark.parametrize("number", [-1, 1000, "-1", "1000", " -3 "])
def test_numbers_out_of_range(number):
    assert _error(number) == f"class number {int(number)} is out of range: give 0 to 999"


@pytest.mark.parametrize("text", ["", "   ", "\n", "-", "_"])
def test_empty_labels(text):
    assert _error(text) == (
        "the label is empty: give a class number from 0 to 999 or a name such as 'tench'"
    )


@pytest.mark.parametrize("text", ["9" * 5000, "mud turtle\nx", "3.5", ","])
def test_odd_text_is_an_unknown_label(text):
    assert _error(text).startswith("unknown label ")


def test_other_class_names():
    assert [find_label(name, SHAPES) for name in ("BALL", "box", "traffic-light", 2)] == [
        0,
        1,
        2,
        2,
    ]
