"""A preference study: what is compared, who is asked what, which votes count, and what is chosen."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.video import read_frames
from svdflow.evaluation.study import create as create_module
from svdflow.evaluation.study import votes as votes_module
from svdflow.evaluation.study.create import create_study
from svdflow.evaluation.study.results import choose_percentage, study_report, study_results
from svdflow.evaluation.study.settings import StudySettings
from svdflow.evaluation.study.study import Check, Item, Study, open_study
from svdflow.evaluation.study.votes import Vote, VoteLog, read_votes
from tests.study_votes import a_video, asked, ballots, lower_wins, vote_all

NAMES = ("0", "12.5", "25", "50")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for n, name in enumerate(NAMES[:3]):
        for item in ("cat", "dog"):
            a_video(tmp_path / name / f"{item}.mp4", 30 * n + 5 * (item == "cat"))
    return {name: tmp_path / name for name in NAMES[:3]}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text('video,text\ndog,"a dog, running"\ncat,a cat\n')
    return path


def made(folder: Path, contestants: int = 4, items: int = 2, checks: int = 2, **settings) -> Study:
    """A study without videos: for what does not look at them."""
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_bytes(b"A" * 43 + b"=")
    (folder / "votes.jsonl").touch()
    all_items = tuple(Item(f"item{n}", f"text {n}", tuple(f"{n}{c}" for c in range(contestants))) for n in range(items))
    ruined = tuple(Check(f"good{n}", f"ruined{n}") for n in range(checks))
    return Study(folder, NAMES[:contestants], all_items, ruined, StudySettings(**settings), "motion")


# what is compared


def test_the_papers_study_of_four_models_takes_2304_votes(tmp_path):
    study = made(tmp_path / "s", contestants=4, items=64)
    assert len(study.tasks()) * study.settings.votes_per_task == 2304
    assert len({task.name for task in study.tasks()}) == 768


def test_a_study_reads_back_and_no_name_of_a_set_leaves_it(tmp_path, folders, texts):
    study = create_study(tmp_path / "s", folders, StudySettings(), texts, "motion")
    assert open_study(tmp_path / "s") == study
    assert [item.text for item in study.items] == ["a cat", "a dog, running"]
    digests = [digest for item in study.items for digest in item.videos]
    assert len(set(digests)) == 6 and all(study.video(digest).exists() for digest in digests)
    ours, theirs = read_frames(study.video(study.items[1].videos[2]), [0]), read_frames(folders["25"] / "dog.mp4", [0])
    assert np.abs(ours.astype(int) - theirs).mean() < 3
    assert (study.folder / "secret").stat().st_mode & 0o777 == 0o600
    for check in study.checks:
        good, ruined = (read_frames(study.video(d), range(3)).astype(int) for d in (check.good, check.ruined))
        assert good.shape == ruined.shape and np.abs(good - ruined).mean() > 20


def test_without_texts_nobody_is_asked_about_them(tmp_path, folders):
    study = create_study(tmp_path / "s", folders, StudySettings())
    assert study.settings.categories == ("quality",) and {t.category for t in study.tasks()} == {"quality"}


def test_the_folder_of_an_evaluation_is_taken_as_it_is(tmp_path):
    for name in ("a", "b"):
        a_video(tmp_path / name / "x1-generated.mp4", 10)
        a_video(tmp_path / name / "x1-truth.mp4", 20)
    study = create_study(tmp_path / "s", {n: tmp_path / n for n in "ab"}, StudySettings())
    assert [item.name for item in study.items] == ["x1"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f, t: (f["25"] / "cat.mp4").unlink(), "25 .* lacks 1 of 2 videos that others have, as cat"),
        (lambda f, t: (f["0"] / "dog.mp4").write_bytes(b"no video"), "dog.mp4: no readable video"),
        (lambda f, t: a_video(f["0"] / "dog.webm.mp4", 1), "lacks 1 of 3"),
        (lambda f, t: f.pop("0") and f.pop("25"), "two or more sets"),
        (lambda f, t: f.update({"30": f["0"] / "nothing"}), "is no folder of videos"),
        (lambda f, t: f.update({"half": f["0"]}), "'half': in a study of a filter"),
        (lambda f, t: f.update({"25.0": f["0"]}), "two sets with the same percentage"),
        (lambda f, t: t.write_text("video,text\ncat,a cat\n"), "has no text for 1 of 2 videos, as dog"),
        (lambda f, t: t.write_text("video,text\ncat,a cat\ncat,b\n"), "line 3: cat comes twice"),
        (lambda f, t: t.write_text("name;text\ncat;a cat\n"), "line 2: columns video .* and text are needed"),
        (lambda f, t: t.write_bytes(b"video,text\n\xff\xfe"), "cannot be read as CSV"),
        (lambda f, t: a_video(f["0"] / "cat.mp4", 1, frames=1025), "1025 frames of 32x16 px are more than"),
    ],
)
def test_what_cannot_be_compared_is_told_and_leaves_nothing(tmp_path, folders, texts, spoil, says):
    spoil(folders, texts)
    with pytest.raises(BadInputError, match=says):
        create_study(tmp_path / "s", folders, StudySettings(), texts, "motion")
    assert [path.name for path in tmp_path.iterdir() if path.name.strip(".").startswith("s")] == []


def test_what_a_killed_process_left_of_a_study_goes_and_what_another_makes_stays(tmp_path, folders):
    stay = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(999)"
    )
    names = ("s.svdflow-study-a", "s.svdflow-study-b", "other.svdflow-study-a", "s.20240101")
    dead, alive, others, own = (tmp_path / f".{name}" for name in names)
    for folder in (dead, alive, others, own):
        (folder / "videos").mkdir(parents=True)
    gone = tmp_path / ".s.svdflow-study-c"  # as one that another sweeps between being seen and being opened
    gone.symlink_to(tmp_path / "nowhere")
    with subprocess.Popen([sys.executable, "-c", stay, alive], stdout=subprocess.PIPE) as maker:
        try:
            assert maker.stdout.read(1)
            create_study(tmp_path / "s", folders, StudySettings())
        finally:
            maker.kill()
    assert [folder.exists() for folder in (dead, alive, others, own)] == [False, True, True, True]


@pytest.mark.parametrize("moment", ["open", "flock"])
def test_what_another_sweeps_before_it_is_held_is_begun_again(tmp_path, folders, monkeypatch, moment):
    """The other comes between a folder's making and its holding: once, then every time."""
    where = {"open": create_module.os, "flock": create_module.fcntl}[moment]
    act, swept = getattr(where, moment), []

    def late(path, flags, *rest, **how):
        begun = [p for p in tmp_path.iterdir() if p.name.startswith(".s.svdflow-study-")]
        if begun and len(swept) < most:
            swept.extend(begun)
            for folder in begun:
                folder.rmdir()
        return act(path, flags, *rest, **how)

    with monkeypatch.context() as patched:
        patched.setattr(where, moment, late)
        most = 1
        assert open_study(create_study(tmp_path / "s", folders, StudySettings()).folder).items
        shutil.rmtree(tmp_path / "s")
        most = 99
        with pytest.raises(StorageError, match="run it again"):
            create_study(tmp_path / "s", folders, StudySettings())
    assert swept and not list(tmp_path.glob(".s.*")) and not (tmp_path / "s").exists()


def test_votes_of_one_study_never_meet_another(tmp_path, folders):
    create_study(tmp_path / "s", folders, StudySettings())
    with pytest.raises(BadInputError, match="is there already"):
        create_study(tmp_path / "s", folders, StudySettings())
    with pytest.raises(BadInputError, match="no study is there"):
        open_study(tmp_path)


# who is asked what


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(3, 9))
def test_every_question_gets_its_votes_from_different_raters_and_no_more(tmp_path_factory, seed, wanted, raters):
    study = made(tmp_path_factory.mktemp("s"), votes_per_task=wanted, check_share=0.3)
    held, chance = ballots(study, seed), random.Random(seed)
    open_ = [f"rater{n}" for n in range(raters)]
    while open_:
        rater = chance.choice(open_)
        showing = held.next_for(rater)
        if showing is None:
            open_.remove(rater)
            continue
        told = asked(held, showing)
        left = told["left"] == 0 if told["task"].startswith("check-") else chance.random() < 0.5
        assert held.cast(rater, showing.ticket, "left" if left else "right")
    given_ = Counter((vote.task, vote.rater) for vote in read_votes(study.votes))
    assert set(given_.values()) == {1}
    per_task = Counter(task for task, _ in given_ if not task.startswith("check-"))
    assert per_task == {task.name: min(wanted, raters) for task in study.tasks()}


def test_sides_and_order_are_drawn_anew_for_every_rater(tmp_path):
    study = made(tmp_path / "s", items=8, votes_per_task=8, check_share=0.0)
    held, orders, left = ballots(study), set(), 0
    for n in range(8):
        vote_all(held, f"r{n}", lower_wins)
    for n in range(8):
        mine = [vote for vote in read_votes(study.votes) if vote.rater == f"r{n}"]
        orders.add(tuple(vote.task for vote in mine))
        left += sum(vote.left < vote.right for vote in mine)
    votes = 8 * len(study.tasks())
    assert len(orders) == 8 and abs(left / votes - 0.5) < 4 * 0.5 / np.sqrt(votes)


def test_a_page_that_is_loaded_again_shows_the_same(tmp_path):
    held = ballots(made(tmp_path / "s"))
    first = held.next_for("a")
    assert held.next_for("a") == first
    assert held.next_for("b") != first


def test_a_question_waits_for_its_rater_so_long_and_is_then_anothers(tmp_path):
    clock = [0.0]
    study = made(tmp_path / "s", contestants=2, items=1, votes_per_task=1, check_share=0.0, categories=("quality",))
    held = ballots(study, clock=lambda: clock[0])
    mine = held.next_for("a")
    assert held.next_for("b") is None and held.is_waited_for("b")
    clock[0] = study.settings.reserved_s + 1
    assert held.next_for("b") is not None
    assert held.cast("a", mine.ticket, "left"), "late, and an answer all the same"
    assert not held.is_waited_for("c")


def test_an_answer_counts_once_from_whom_it_was_asked_and_after_a_restart(tmp_path):
    study = made(tmp_path / "s")
    held = ballots(study)
    showing = held.next_for("a")
    assert not held.cast("b", showing.ticket, "left"), "another's"
    assert not held.cast("a", showing.ticket, "both")
    for ticket in ("", "x", showing.ticket[:-4], showing.ticket.swapcase(), "ä", "\x00"):
        assert not held.cast("a", ticket, "left")
    again = ballots(study)  # as after a crash: nothing but the file is known
    assert again.cast("a", showing.ticket, "left")
    assert not again.cast("a", showing.ticket, "right"), "a double click, or the button Back"
    assert len(list(read_votes(study.votes))) == 1
    assert not ballots(study).cast("a", showing.ticket, "right")


def test_a_page_does_not_tell_what_it_shows(tmp_path):
    held = ballots(made(tmp_path / "s", check_share=0.5))
    for n in range(20):
        showing = held.next_for(f"r{n}")
        told = asked(held, showing)
        assert told["task"] not in showing.ticket
        assert (showing.text is None) == (showing.category == "quality"), "a check looks like any question of quality"


def test_who_fails_the_attention_checks_has_no_vote_and_others_are_asked(tmp_path):
    study = made(tmp_path / "s", votes_per_task=1, check_share=0.5, checks=4)
    held = ballots(study)
    vote_all(held, "careless", lambda task, left, right: left > right)
    assert held.state()[0] == 0
    vote_all(held, "careful", lower_wins)
    votes, wanted = held.state()
    assert votes == wanted == len(study.tasks())
    results = study_results(study)
    assert results["complete"] and not results["raters"]["careless"]["counted"]
    assert all(np.array(found["wins"]).trace() == 0 for found in results["categories"].values())
    assert all(np.tril(found["wins"]).sum() == 0 for found in results["categories"].values()), "the careful one's alone"


def test_a_rater_gives_so_many_answers_and_no_more(tmp_path):
    held = ballots(made(tmp_path / "s", max_votes_per_rater=5))
    assert vote_all(held, "a", lower_wins) == 5 and not held.is_waited_for("a")


# the file of votes


def vote(n: int) -> Vote:
    return Vote(f"quality-{n}-0-1", 0, 1, 0, "r", 1.0, 2.0)


def test_the_half_of_a_line_that_a_crash_leaves_is_no_vote_and_in_nobodys_way(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.touch()
    log = VoteLog(path)
    log.append(vote(0))
    log.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert list(read_votes(path)) == [vote(0)]
        log = VoteLog(path)
        log.append(vote(1))
        log.close()
        assert list(read_votes(path)) == [vote(0), vote(1)]


def test_a_vote_that_cannot_be_written_is_not_taken_and_leaves_no_trace(tmp_path, monkeypatch):
    study = made(tmp_path / "s")
    held = ballots(study)
    showing = held.next_for("a")
    write = os.pwrite
    monkeypatch.setattr(votes_module.os, "pwrite", lambda file, line, at: write(file, line[:7], at))
    with pytest.raises(StorageError, match="the disk is full"):
        held.cast("a", showing.ticket, "left")
    assert study.votes.read_bytes() == b""
    monkeypatch.undo()
    assert held.next_for("a") == showing and held.cast("a", showing.ticket, "left")


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"no json", b'{"task": 1}', b"{" + b" " * 5000 + b"}"])
def test_a_line_that_no_crash_can_have_left_is_told(tmp_path, line):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(BadInputError, match="line 1: no vote"):
        list(read_votes(path))


# what is found


def test_the_better_are_rated_higher_and_the_page_shows_it(tmp_path, folders, texts):
    study = create_study(tmp_path / "s", folders, StudySettings(check_share=0.0), texts, "motion")
    held = ballots(study)
    for rater in "abc":
        vote_all(held, rater, lambda task, left, right: (left > right) == task.startswith("quality"))
    results = study_results(study)
    elo = {name: found["elo"] for name, found in results["categories"].items()}
    assert elo["quality"]["25"] > elo["quality"]["12.5"] > elo["quality"]["0"]
    assert elo["prompt"]["25"] < elo["prompt"]["12.5"] < elo["prompt"]["0"]
    assert results["weights"] == {"quality": 0.75, "prompt": 0.25}
    assert results["together"]["elo"]["25"] == pytest.approx(
        0.75 * elo["quality"]["25"] + 0.25 * elo["prompt"]["25"], abs=0.01
    )
    low, high = results["categories"]["quality"]["elo_95"]["25"]
    assert low < elo["quality"]["25"] < high
    assert results["categories"]["quality"]["agreement"] == 1 and json.dumps(results)
    percent, sure, _ = choose_percentage(study)
    assert percent == 25 and sure.startswith("above 12.5 in 9")
    assert choose_percentage(study, {"quality": 1.0, "prompt": 9.0})[0] == 0
    titles = [section["title"] for section in study_report(study, results).sections]
    assert titles[:2] == ["Elo", "What dropping on motion is worth"] and "cat: a cat" in titles


def test_where_raters_are_of_two_minds_it_is_said_that_votes_do_not_decide(tmp_path):
    study = made(tmp_path / "s", contestants=2, items=6, votes_per_task=2, check_share=0.0)
    held = ballots(study)
    vote_all(held, "a", lower_wins)
    vote_all(held, "b", lambda task, left, right: left > right)
    percent, sure, results = choose_percentage(study)
    assert percent in (0, 12.5) and "does not tell the two apart" in sure
    assert results["categories"]["quality"]["agreement"] == 0


def test_nothing_is_chosen_too_early_or_of_no_filter(tmp_path):
    study = made(tmp_path / "s")
    with pytest.raises(BadInputError, match="no vote that counts so far"):
        study_results(study)
    held = ballots(study)
    vote_all(held, "a", lower_wins)
    with pytest.raises(BadInputError, match=r"0 of 24 questions have all their votes"):
        choose_percentage(study)
    with pytest.raises(BadInputError, match="made with --filter AXIS"):
        choose_percentage(Study(study.folder, NAMES, study.items, study.checks, study.settings, None))
    with pytest.raises(BadInputError, match="beauty: no category of this study"):
        study_results(study, {"beauty": 1.0})
    with pytest.raises(BadInputError, match="one must be above"):
        study_results(study, {"quality": 0.0})
