"""Hybrid search: two rankings fused, what texts show, what stands beside, what is recent."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from memworker.errors import UsageError
from memworker.store import Hit, Table
from memworker.store.clues import DATED, LENGTH, STATEMENT, TIMED, Query, stems
from memworker.store.fuse import COVERAGE, VECTOR, WORDS, fuse
from memworker.store.neighbours import AFTER, BEFORE, Order
from memworker.store.recency import MOST_LOST, checked_half_life, faded
from tests.store.helpers import SPACE, batch, vector_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE)


def ranked(**scores):
    """Hits whose texts show nothing: empty, so that the rankings alone decide."""
    return [Hit(name, score) for name, score in scores.items()]


def fused(near, worded, limit=9, question="...", **more):
    hits = fuse(Query(question), near, worded, limit, **more)
    most = (VECTOR + WORDS + COVERAGE) * Query(question).most
    return {hit.id: round(hit.score * most / (1 + STATEMENT), 6) for hit in hits}


def test_fusion_weighs_how_sure_each_ranking_is():
    near = ranked(a=0.9, b=0.8, c=0.4)
    sure = fused(near, ranked(c=12.0, **{f"w{n}": 3.0 for n in range(49)}))
    assert list(sure)[0] == "c" and sure["c"] == 0.6 and sure["b"] == 0.32
    # What has few words in common with the query is beaten by what is near and has nearly as many.
    assert list(fused(near, ranked(x=5.0, a=4.9)))[:2] == ["a", "x"]


def test_fusion_of_few_hits_of_one_or_of_none():
    near = ranked(a=0.9, b=0.5)
    assert fused(near, []) == {"a": 0.4, "b": 0.0}
    assert fused([], ranked(a=3.0)) == {"a": 0.6}
    # Fewer than were asked for are all that have the words: the last of them counts too.
    assert fused([], ranked(a=3.0, b=1.5)) == {"a": 0.6, "b": 0.3}
    assert fused([], []) == {}
    assert list(fused(near, ranked(b=1.0), limit=1)) == ["b"]


def test_fusion_of_equal_scores():
    assert fused(ranked(a=0.5, b=0.5), ranked(c=2.0, b=2.0)) == {"b": 1.0, "c": 0.6, "a": 0.4}
    assert list(fused(ranked(z=0.5, a=0.5), [])) == ["z", "a"]


def test_fusion_survives_scores_below_zero():
    assert fused(ranked(a=-0.1, b=-0.3), []) == {"a": 0.4, "b": 0.0}


def test_scores_lie_between_0_and_1():
    sure = Hit("a", 0.9, text="Ann paid much, 12, in May 2026. " * 20, created_at=NOW)
    (hit,) = fuse(Query("how much paid Ann in May 2026"), [sure], [sure], 1)
    assert 0.9 < hit.score <= 1


@pytest.mark.parametrize(
    ("question", "better", "worse"),
    [
        ("where was Ann", "Ann was at sea", "Ann was at sea?"),
        ("安在哪里", "安在海边", "安在海边？"),
        ("when was Ann there", "Ann was there in May", "Ann was there in Rome"),
        ("how many cats has she", "she has three cats", "she has those cats"),
        ("who walked", "a long walk " + "by the river " * 9, "a long walk"),
    ],
)
def test_of_two_found_alike_the_likelier_answer_comes_first(question, better, worse):
    hits = [Hit("worse", 1.0, text=worse), Hit("better", 1.0, text=better)]
    assert [hit.id for hit in fuse(Query(question), hits, [], 2)] == ["better", "worse"]


def test_clues_do_not_lift_what_no_ranking_is_sure_of():
    long = "in May 2026 we bought three boats. " * 10
    near = [Hit("short", 0.9, text="has a dog"), *ranked(a=0.3, b=0.2), Hit("long", 0.1, text=long)]
    best = fuse(Query("when did they get pets"), near, [], 1)
    assert best[0].id == "short"


def test_a_date_in_the_question_prefers_what_was_told_then():
    may = Hit("may", 1.0, created_at=datetime(2026, 5, 9, tzinfo=UTC))
    june = Hit("june", 1.0, created_at=datetime(2026, 6, 9, tzinfo=UTC))
    old = Hit("old", 1.0, created_at=datetime(2025, 6, 9, tzinfo=UTC))

    def first(question):
        return fuse(Query(question), [old, june, may], [], 1)[0].id

    assert first("what did we do in May?") == "may"
    assert first("what did we do in june 2026?") == "june"
    assert first("what did we do in 2025?") == "old"
    # A word, and no month.
    assert first("what may we do?") == "old"
    assert first("what did we do in 1999?") == "old"


def test_coverage_counts_the_rare_words_of_the_question_more():
    texts = {"both": "Ann sails", "rare": "sailing", "common": "Ann walks", "none": "Ann", "no": ""}
    covered = Query("Does Ann sail?").coverage(texts)
    assert covered["both"] == 1 and covered["no"] == 0
    assert covered["rare"] > covered["common"] == covered["none"] > 0
    assert Query("... what?").coverage(texts) == dict.fromkeys(texts, 0.0)
    assert Query("Ann").coverage({}) == {}


def test_words_are_compared_without_endings_accents_and_blanks():
    assert stems("She Walks") == stems("walked") == stems("walking")
    assert stems("Cafés") == stems("cafe")
    assert stems("東京に行った") & stems("東京") == {"東京"}
    assert stems("한국어") and stems("हिन्दी") and not stems("🙂 …")


def test_the_factor_has_a_known_most():
    question = Query("when in May?")
    told = question.factor("x " * 600 + "in 2026", NOW)
    assert told == pytest.approx(1 + STATEMENT + LENGTH + DATED)  # the time lies behind
    told = question.factor("yesterday " * 30, NOW)
    assert told == pytest.approx(question.most) == 1 + STATEMENT + LENGTH + TIMED + DATED


def line_of(ids, context, scopes=None):
    scopes = scopes or [("u",)] * len(ids)
    return Order(ids, scopes, {one: place for place, one in enumerate(ids)}, context)


def test_neighbours_share_their_scores_and_may_be_found():
    order = line_of(["a", "b", "c", "d"], 1)
    assert order.shared({"b": 1.0}) == {"b": 1.0, "c": BEFORE, "a": AFTER}
    assert line_of(["a", "b", "c"], 2).shared({"a": 1.0})["c"] == BEFORE / 2
    found = fused(ranked(b=1.0), [], order=order, read=lambda ids: [Hit(one, 0.0) for one in ids])
    assert list(found) == ["b", "c", "a"] and max(found.values()) <= 1


def test_neighbours_are_of_the_same_scope():
    order = line_of(["a", "b", "c"], 2, [("u",), ("v",), ("v",)])
    assert order.shared({"b": 1.0}) == {"b": 1.0, "c": BEFORE}
    assert order.around("b") == ([], ["c"])
    assert order.around("a") == ([], []) == order.around("unknown")


@pytest.mark.parametrize("way", ["vector", "text", "hybrid"])
def test_a_hit_comes_with_what_stands_beside_it(table, way):
    rows = batch([(f"n{i}", f"filler {i}") for i in range(9)])
    times = [NOW + timedelta(minutes=9 - i) for i in range(9)]
    scopes = [*["ann"] * 6, *["bob"] * 3]
    rows = with_columns(rows, created_at=times, user_id=scopes)
    table.append(rows)
    ask = {
        "vector": lambda **how: table.search(vector_of("filler 5"), **how),
        "text": lambda **how: table.search_text("5", **how),
        "hybrid": lambda **how: table.search_hybrid("5", vector_of("filler 5"), **how),
    }[way]
    (hit,) = ask(limit=1, context=2)
    assert hit.id == "n5"
    # By time, and none of another's.
    assert [one.id for one in hit.before] == []
    assert [one.id for one in hit.after] == ["n4", "n3"]
    assert [one.text for one in hit.after] == ["filler 4", "filler 3"]
    (hit,) = ask(limit=1, context=1, where={"text": {"ne": "filler 4"}}, columns=["id"])
    assert [one.id for one in hit.after] == ["n3"] and hit.text == "" == hit.after[0].text
    assert ask(limit=1)[0].after == ()


def test_expired_rows_stand_beside_nothing(table):
    rows = batch([(f"n{i}", f"filler {i}") for i in range(3)])
    past = datetime(2001, 1, 1, tzinfo=UTC)
    rows = with_columns(
        rows,
        created_at=[NOW + timedelta(minutes=i) for i in range(3)],
        expires_at=[None, past, None],
    )
    table.append(rows)
    hits = table.search_hybrid("filler 0", vector_of("filler 0"), context=1)
    assert {hit.id for hit in hits} == {"n0", "n2"}
    assert [one.id for one in hits[0].after] == ["n2"]


@pytest.mark.parametrize("context", [-1, 21, 1.5, "two", None])
def test_a_context_that_cannot_be_is_refused(table, context):
    with pytest.raises(UsageError, match="context"):
        table.search_text("a", context=context)


def test_context_and_group_exclude_each_other(table):
    with pytest.raises(UsageError, match="group"):
        table.search_text("a", context=1, group=True)


def test_what_is_recent_is_preferred_a_little():
    old, new = NOW - timedelta(days=10), NOW
    hits = [Hit("old", 1.0, created_at=old), Hit("new", 0.9, created_at=new)]
    day = timedelta(days=1).total_seconds()
    assert [hit.id for hit in faded(hits, day, NOW)] == ["new", "old"]
    # At one half-life half of the most is lost.
    (hit,) = faded([Hit("x", 1.0, created_at=NOW - timedelta(days=1))], day, NOW)
    assert hit.score == pytest.approx(1 - MOST_LOST / 2)
    # Much better is better still; below zero and from the future nothing rises.
    far = [Hit("old", 1.0, created_at=old), Hit("new", 0.6, created_at=new)]
    assert [hit.id for hit in faded(far, day, NOW)] == ["old", "new"]
    below = [Hit("x", -0.5, created_at=old), Hit("y", -0.5, created_at=NOW + timedelta(days=3))]
    assert [hit.id for hit in faded(below, day, NOW)] == ["y", "x"]
    assert faded(below, day, NOW)[0].score == -0.5


def test_recency_finds_what_stands_behind_the_limit(table):
    rows = batch([(f"n{i}", "the same words") for i in range(20)])
    ages = [timedelta(days=400)] * 19 + [timedelta(0)]
    table.append(with_columns(rows, created_at=[datetime.now(UTC) - age for age in ages]))
    for ask in (
        lambda **how: table.search(vector_of("the same words"), **how),
        lambda **how: table.search_text("same words", **how),
        lambda **how: table.search_hybrid("same words", vector_of("the same words"), **how),
    ):
        (hit,) = ask(limit=1, recency_half_life=timedelta(days=30), columns=["id"])
        assert hit.id == "n19" and hit.created_at is None and hit.text == ""


@pytest.mark.parametrize("given", [0, -1, "week", float("inf"), float("nan"), timedelta(0), True])
def test_a_half_life_that_cannot_be_is_refused(given):
    with pytest.raises(UsageError, match="recency_half_life"):
        checked_half_life(given)


def test_a_half_life_is_days_or_a_timedelta():
    assert checked_half_life(2) == checked_half_life(timedelta(days=2)) == 172_800
    assert checked_half_life(None) is None


def with_columns(rows, **columns):
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        rows = rows.set_column(place, field, pa.array(values, field.type))
    return rows
