"""A takedown in a study: what was made from the video is gone, all else and the votes on it mean what they meant."""

import fcntl
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.evaluation.columns import write_videos
from svdflow.evaluation.metric import Clip, Videos
from svdflow.evaluation.sources import read_sources
from svdflow.evaluation.study import takedown
from svdflow.evaluation.study.create import create_study
from svdflow.evaluation.study.notes import noted_studies
from svdflow.evaluation.study.results import study_results
from svdflow.evaluation.study.settings import StudySettings
from svdflow.evaluation.study.study import Study, open_study, save_study
from svdflow.evaluation.study.takedown import forget_in_study
from svdflow.evaluation.study.votes import read_votes
from svdflow.pipelines.studies import forget_in, forget_in_all, write_results
from tests.study_votes import a_video, asked, ballots, lower_wins, vote_all

CAT, DOG, FOX = ("a" * 64, "b" * 64, "c" * 64)
SAID = {"cat": "a cat that sleeps", "dog": "a dog, running", "fox": "a fox in the snow"}
SOURCES = {"cat": CAT, "dog": DOG, "fox": FOX}


@pytest.fixture
def workdirs(tmp_path: Path) -> dict[str, Path]:
    """Two work directories as evaluations leave them: the videos of three samples, and what these were cut from."""
    found = {}
    for number, name in enumerate(("ours", "theirs")):
        found[name] = tmp_path / name
        (found[name] / "manifests").mkdir(parents=True)
        clips = [
            Clip(sample, np.full((3, 16, 32, 3), 60 * number + 20 * at, np.uint8), 8, None, (), SOURCES[sample])
            for at, sample in enumerate(SOURCES)
        ]
        made = Videos([clip.frames_FHWC + 5 for clip in clips])
        write_videos(clips, made, found[name] / "generated" / "held_out")
    return found


@pytest.fixture
def study(tmp_path: Path, workdirs: dict[str, Path]) -> Study:
    texts = tmp_path / "texts.csv"
    texts.write_text("video,text\n" + "".join(f'{name},"{text}"\n' for name, text in SAID.items()))
    folders = {name: workdir / "generated" / "held_out" for name, workdir in workdirs.items()}
    return create_study(tmp_path / "s", folders, StudySettings(votes_per_task=2), texts)


def told_of(folder: Path) -> bytes:
    """All that a study's folder holds of what it shows."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_an_evaluation_tells_of_what_its_videos_were_made_and_a_study_takes_it_over(study, workdirs):
    folder = workdirs["ours"] / "generated" / "held_out"
    assert read_sources(folder) == {name: (source,) for name, source in SOURCES.items()}
    assert {item.name: item.sources for item in open_study(study.folder).items} == read_sources(folder)
    assert read_sources(study.folder) == {}
    for spoilt in (
        "video,source\ncat,\n",
        "video,source\ncat,12ab\n",
        f"name,source\ncat,{CAT}\n",
        f"video;source\ncat;{CAT}\n",
    ):
        (folder / "sources.csv").write_text(spoilt)
        with pytest.raises(BadInputError, match="sources.csv, line 2: columns video"):
            read_sources(folder)


def test_what_was_made_from_it_goes_and_the_votes_on_all_else_count_as_before(study):
    held = ballots(study)
    for rater in "ab":
        vote_all(held, rater, lower_wins)
    write_results(study, before := study_results(study))
    gone, *_ = (item for item in study.items if item.name == "dog")
    assert b"a dog, running" in told_of(study.folder)
    ruined = {check.ruined for check in study.checks if check.good in gone.videos}

    lines = forget_in(study.folder, DOG)
    assert "1 of the 3 videos compared left it" in lines[0] and "4 votes on them count no longer" in lines[0]
    told = told_of(study.folder)
    assert b"dog" not in told and not any(study.video(digest).exists() for digest in {*gone.videos, *ruined})
    assert not any(digest.encode() in told for digest in {*gone.videos, *ruined})
    left = open_study(study.folder)
    assert [item.name for item in left.items] == ["cat", "", "fox"] and left.items[1].sources == (DOG,)
    assert {path.stem for path in (study.folder / "videos").iterdir()} == left.shown()

    after = study_results(left)
    assert after["complete"] and after["tasks"] == before["tasks"] * 2 // 3
    for found in after["categories"].values():
        assert found["votes"] == 4 and found["wins"] == [[0, 4], [0, 0]]
    assert json.loads((study.folder / "results.json").read_bytes())["tasks"] == after["tasks"]
    assert "Elo of all together: ours" in lines[1] and "written anew" in lines[1]


def test_it_is_asked_about_no_more_and_an_answer_in_hand_is_none(study):
    held = ballots(study)
    waiting = {}
    raters = (f"r{number}" for number in count())
    while showing := held.next_for(rater := next(raters)):  # until every question waits for an answer
        waiting.setdefault(asked(held, showing)["task"], (rater, showing.ticket))
    assert "quality-1-0-1" in waiting
    forget_in_study(study.folder, DOG)
    again = ballots(open_study(study.folder))
    assert not again.cast(*waiting["quality-1-0-1"], "left")
    assert again.cast(*waiting["quality-0-0-1"], "left"), "one on another item counts"
    kept = {n for n, check in enumerate(again.study.checks) if not check.forgotten}
    assert len(kept) == 2
    for rater in "abcde":
        vote_all(again, rater, lower_wins)
    votes = list(read_votes(study.votes))
    assert {vote.task.split("-")[1] for vote in votes if not vote.task.startswith("check-")} == {"0", "2"}
    assert {int(vote.task.removeprefix("check-")) for vote in votes if vote.task.startswith("check-")} <= kept


def test_what_tells_no_source_is_named_and_goes_by_its_name(tmp_path):
    for name in ("ours", "theirs"):
        for at, item in enumerate(SAID):
            a_video(tmp_path / name / f"{item}.mp4", 20 * at + 5 * len(name))
    study = create_study(tmp_path / "s", {n: tmp_path / n for n in ("ours", "theirs")}, StudySettings())
    lines = forget_in(study.folder, DOG)
    assert lines[0].endswith("none of the 3 videos compared is known to be made from it")
    assert "of 3 it is not known what they were made from: cat, dog, fox." in lines[1] and "--item NAME" in lines[1]
    assert open_study(study.folder) == study
    with pytest.raises(BadInputError, match="compares no wolf; nothing was taken out"):
        forget_in(study.folder, None, ["dog", "wolf"])
    assert open_study(study.folder) == study
    assert "1 of the 3" in forget_in(study.folder, None, ["dog"])[0]
    assert [item.name for item in open_study(study.folder).items] == ["cat", "", "fox"]


def test_when_nothing_is_left_there_are_no_results(study):
    vote_all(ballots(study), "a", lower_wins)
    write_results(study, study_results(study))
    for source in SOURCES.values():
        lines = forget_in(study.folder, source)
    assert lines[1].endswith("no vote that counts is left, and so no results")
    assert {path.name for path in study.folder.iterdir()} == {"study.json", "votes.jsonl", "secret", "videos"}
    assert not list((study.folder / "videos").iterdir()) and ballots(open_study(study.folder)).next_for("b") is None


def test_a_killed_takedown_is_finished_by_the_next(study, monkeypatch):
    vote_all(ballots(study), "a", lower_wins)
    write_results(study, study_results(study))

    def killed(*given):
        save_study(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(takedown, "save_study", killed)
        with pytest.raises(KeyboardInterrupt):
            forget_in_study(study.folder, DOG)
    assert b"a dog, running" in told_of(study.folder)
    assert "files that an earlier takedown left were removed" in forget_in(study.folder, DOG)[0]
    assert b"dog" not in told_of(study.folder)
    assert {path.stem for path in (study.folder / "videos").iterdir()} == open_study(study.folder).shown()


def test_a_work_directory_that_takes_no_note_is_told_and_the_study_made_all_the_same(tmp_path, workdirs, capfd):
    (workdirs["theirs"] / "studies").write_text("not a folder")
    folders = {name: workdir / "generated" / "held_out" for name, workdir in workdirs.items()}
    made = create_study(tmp_path / "t", folders, StudySettings())
    said = capfd.readouterr().err
    assert (
        f"{workdirs['theirs']}: takes no note of this study" in said and f"name it then: --study {made.folder}" in said
    )
    assert noted_studies(workdirs["ours"]) == [made.folder] and noted_studies(workdirs["theirs"]) == []
    assert "1 of the 3" in forget_in_all(workdirs["theirs"], [made.folder], DOG)[0][0]


def test_a_work_directory_knows_its_studies_and_says_which_it_cannot_reach(tmp_path, study, workdirs):
    assert [noted_studies(workdir) for workdir in workdirs.values()] == [[study.folder]] * 2
    assert noted_studies(tmp_path) == []
    folders = {name: workdir / "generated" / "held_out" for name, workdir in workdirs.items()}
    with pytest.raises(BadInputError, match="is there already"):
        create_study(study.folder, folders, StudySettings())
    (folders["ours"] / "cat-generated.mp4").write_bytes(b"no video")
    with pytest.raises(BadInputError, match="no readable video"):
        create_study(tmp_path / "never", folders, StudySettings())
    assert noted_studies(workdirs["ours"]) == [study.folder]

    moved = tmp_path / "moved"
    with study.votes.open("rb") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        lines, unreached = forget_in_all(workdirs["ours"], [], DOG)
    assert not lines and "another server is taking this study's votes" in unreached[0]
    study.folder.rename(moved)
    lines, unreached = forget_in_all(workdirs["ours"], [moved], DOG)
    assert f"if it was moved: svdflow study forget ITS_FOLDER {DOG}" in lines[0] and not unreached
    assert "1 of the 3 videos compared left it" in lines[1] and b"dog" not in told_of(moved)
