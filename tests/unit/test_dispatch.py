"""The worker pool: credit, deadlines, affinity. Time is handed in, nothing waits."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from shared.dispatch import WorkerPool
from shared.messages import Credit


def credit(
    worker: str,
    done: int = -1,
    held: int = 0,
    faces: tuple[str, ...] = (),
    engine: str = "e",
    model: str = "",
    window_ms: float = 0.0,
):
    return Credit(
        worker=worker,
        engine=engine,
        capacity=2,
        held=held,
        done=done,
        back=0,
        ahead=16,
        shift=0,
        faces=faces,
        model=model,
        window_ms=window_ms,
    )


def pool_of(*workers: str) -> WorkerPool:
    pool = WorkerPool()
    for worker in workers:
        pool.listen(worker)
        pool.credit(credit(worker), 0.0)
    return pool


def test_nobody_works_before_joining_and_saying_what_it_is():
    pool = WorkerPool()
    pool.credit(credit("a"), 0.0)
    assert pool.assign("f", 0.0, 1.0) is None
    pool.listen("a")
    assert pool.assign("f", 0.0, 1.0) is None
    pool.credit(credit("a"), 0.0)
    assert pool.assign("f", 0.0, 1.0) is not None


def test_no_credit_no_work():
    pool = pool_of("a")
    assert [pool.assign("f", 0.0, 1.0) is not None for _ in range(3)] == [True, True, False]
    pool.credit(credit("a", done=0, held=1), 0.1)
    given = pool.assign("f", 0.0, 1.0)
    assert given is not None
    assert given.seq == 2
    assert pool.assign("f", 0.0, 1.0) is None


def test_only_workers_that_hold_the_face_get_it_and_while_nobody_does_anybody():
    pool = pool_of("a", "b")
    workers = [given.worker for given in (pool.assign("f", 0.0, 1.0) for _ in range(4)) if given]
    assert sorted(workers[:2]) == ["a", "b"]
    assert len(workers) == 4
    pool = pool_of("a", "b")
    pool.credit(credit("b", faces=("f",)), 0.0)
    workers = [given.worker for given in (pool.assign("f", 0.0, 1.0) for _ in range(4)) if given]
    assert workers == ["b", "b"]


def test_the_worker_that_will_be_done_first_comes_first():
    pool = pool_of("slow", "fast")
    pool.credit(credit("slow", window_ms=20.0), 0.0)
    pool.credit(credit("fast", window_ms=9.0), 0.0)
    workers = [given.worker for given in (pool.assign("f", 0.0, 1.0) for _ in range(4)) if given]
    assert workers == ["fast", "fast", "slow", "slow"]
    pool = pool_of("slow", "fast")
    pool.credit(credit("slow", window_ms=11.0), 0.0)
    pool.credit(credit("fast", window_ms=9.0), 0.0)
    workers = [given.worker for given in (pool.assign("f", 0.0, 1.0) for _ in range(4)) if given]
    assert workers == ["fast", "slow", "fast", "slow"]


def test_a_missed_deadline_withdraws_the_credit_until_the_work_is_done():
    pool = pool_of("a")
    pool.assign("f", 0.0, 0.2)
    pool.expire(0.1)
    assert pool.free() == 1
    pool.expire(0.3)
    assert pool.assign("f", 0.0, 1.0) is None
    pool.credit(credit("a", done=-1, held=1), 1.0)  # it still has it
    assert pool.assign("f", 0.0, 2.0) is None
    pool.credit(credit("a", done=0), 1.1)
    assert pool.assign("f", 0.0, 2.0) is not None


def test_work_lost_on_the_way_is_forgotten_and_a_worker_that_misses_again_and_again_waits_longer():
    pool = pool_of("a")
    waits = []
    now = 0.0
    for _ in range(4):
        while pool.assign("f", 0.0, now + 0.1) is None:
            now += 0.01
            pool.credit(credit("a"), now)
        now += 0.11
        pool.expire(now)
        began = now
        while pool.free() == 0:
            now += 0.01
            pool.credit(credit("a"), now)
        waits.append(now - began)
    assert waits == sorted(waits)
    assert waits[-1] > 4 * waits[0]


def test_a_silent_worker_gets_nothing():
    pool = pool_of("a", "b")
    pool.credit(credit("b"), 1.5)
    pool.expire(1.6)
    workers = {given.worker for given in (pool.assign("f", 0.0, 2.0) for _ in range(4)) if given}
    assert workers == {"b"}


def test_leaving_loses_what_was_held_and_frees_the_rest():
    pool = pool_of("a", "b")
    for _ in range(4):
        pool.assign("f", 0.0, 1.0)
    assert len(pool.leave("a")) == 2
    assert pool.counters["lost"] == 2
    assert pool.waiting_for() == 2
    assert list(pool) == ["b"]
    assert pool.leave("nobody") == []
    assert pool.counters["left"] == 1


def test_all_work_is_made_for_one_engine():
    pool = pool_of("a")
    pool.listen("b")
    pool.credit(credit("b", engine="other"), 0.5)
    engine = pool.engine()
    assert engine is not None
    assert engine.engine == "e"
    workers = [given.worker for given in (pool.assign("f", 0.0, 1.0) for _ in range(4)) if given]
    assert workers == ["a", "a"]
    pool.leave("a")
    engine = pool.engine()
    assert engine is not None
    assert engine.engine == "other"


def test_a_worker_with_another_model_is_told_so_and_gets_nothing():
    pool = WorkerPool("builtin", "11aa")
    for name, engine, model in (("a", "builtin", "22bb"), ("b", "wav2lip", "11aa"), ("c", "builtin", "11aa")):
        pool.listen(name)
        pool.credit(credit(name, engine=engine, model=model), 0.0)
    told = dict(pool.refusals(1.0))
    assert told.keys() == {"a", "b"}
    assert "11aa" in told["a"]
    assert "22bb" in told["a"]
    assert not list(pool.refusals(2.0))
    assert dict(pool.refusals(1.0 + pool.TOLD_EVERY_S)).keys() == {"a", "b"}
    assert pool.counters["refused"] == 2
    assert {given.worker for given in (pool.assign("f", 0.0, 9.0) for _ in range(3)) if given} == {"c"}
    pool.leave("c")
    assert pool.engine() is None
    assert pool.free() == 0


@pytest.mark.parametrize("hub", [("e", "11aa"), ("", "")])
@pytest.mark.parametrize("other", [{"back": 24}, {"ahead": 7}, {"shift": -1}, {"in_silence": True}])
def test_a_worker_whose_window_differs_from_the_first_ones_is_told_so_and_gets_nothing(
    hub: tuple[str, str], other: dict[str, int | bool]
):
    pool = WorkerPool(*hub)
    mine = credit("first", model="11aa")
    for at_s, account in (
        (0.0, mine),
        (0.1, msgspec.structs.replace(mine, worker="odd", **other)),
        (0.2, msgspec.structs.replace(mine, worker="same")),
    ):
        pool.listen(account.worker)
        pool.credit(account, at_s)
    told = dict(pool.refusals(1.0))
    assert told.keys() == {"odd"}
    for name, value in other.items():
        assert f"{name} {value} instead of {getattr(mine, name)}" in told["odd"]
    assert "MOUTHPIECE_LIFE" in told["odd"]
    workers = {given.worker for given in (pool.assign("f", 0.0, 9.0) for _ in range(6)) if given}
    assert workers == {"first", "same"}
    assert pool.able() == 2
    pool.leave("same")
    pool.leave("first")
    assert pool.engine() == msgspec.structs.replace(mine, worker="odd", **other)
    assert not list(pool.refusals(9.0))


def test_a_worker_with_another_model_says_nothing_about_the_window():
    pool = WorkerPool("e", "11aa")
    for name, model in (("other", "22bb"), ("fits", "11aa")):
        pool.listen(name)
        pool.credit(msgspec.structs.replace(credit(name, model=model), back=8 * (name == "other")), 0.0)
    assert dict(pool.refusals(1.0)).keys() == {"other"}
    engine = pool.engine()
    assert engine is not None
    assert engine.worker == "fits"


def test_a_worker_that_never_makes_it_is_no_trouble():
    pool = pool_of("a")
    now_s = 0.0
    for _ in range(1100):
        now_s += 10.0
        pool.credit(credit("a"), now_s)
        assert pool.assign("f", now_s, now_s + 0.2) is not None
        pool.expire(now_s + 0.3)
    assert pool.counters["missed"] == 1100


def test_a_worker_that_joins_again_is_counted_anew():
    pool = pool_of("a")
    pool.credit(credit("a", done=5000), 0.0)
    assert pool.assign("f", 0.0, 1.0) is not None
    pool.credit(credit("a", done=5000, held=1), 0.1)
    assert pool.held("a") == {0}
    pool.credit(credit("a", done=0), 0.1)
    assert pool.held("a") == frozenset()


def test_only_so_many_workers_may_join():
    names = [f"w{number}" for number in range(2 * WorkerPool.MOST_WORKERS)]
    pool = pool_of(*names)
    assert len(pool) == pool.MOST_WORKERS
    pool.leave(names[0])
    pool.credit(credit(names[-1]), 0.1)
    assert len(pool) == pool.MOST_WORKERS
    assert names[-1] in pool


def test_who_only_subscribes_takes_nobodys_place():
    pool = WorkerPool()
    for number in range(2 * pool.MOST_WORKERS):
        pool.listen(f"w{number}")
    assert len(pool) == 0
    pool.listen("a")
    pool.credit(credit("a"), 0.0)
    given = pool.assign("f", 0.0, 1.0)
    assert given is not None
    assert given.worker == "a"


def test_work_is_never_given_to_one_who_left():
    pool = pool_of("a")
    pool.listen("b")
    for name in ("a", "b"):
        pool.leave(name)
        pool.credit(credit(name), 0.1)  # on its way while the connection ended
        assert pool.assign("f", 0.1, 1.0) is None
    assert pool.counters["joined"] == pool.counters["left"] == 1


def test_a_worker_that_was_slow_gets_another_chance():
    pool = pool_of("fast", "slow")
    told = {"fast": credit("fast", window_ms=10.0), "slow": credit("slow", window_ms=100.0)}
    done = Counter[str]()
    first_s = None
    for step in range(4000):
        now_s = step * 0.04
        for name, account in told.items():
            pool.credit(msgspec.structs.replace(account, done=done[name] - 1), now_s)
        given = pool.assign("f", now_s, now_s + 1.0)
        assert given is not None
        done[given.worker] += 1
        if given.worker == "slow" and first_s is None:
            first_s = now_s
    assert first_s is not None
    assert 1.0 < first_s < 60.0
    assert done["fast"] > 10 * done["slow"] > 0
