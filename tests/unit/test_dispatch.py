"""The worker pool: credit, deadlines, affinity. Time is handed in, nothing waits."""

from __future__ import annotations

from shared.dispatch import WorkerPool
from shared.messages import Credit


def credit(worker: str, done: int = -1, held: int = 0, faces: tuple[str, ...] = (), engine: str = "e"):
    return Credit(
        worker=worker, engine=engine, capacity=2, held=held, done=done, back=0, ahead=16, shift=0, faces=faces
    )


def pool_of(*workers: str) -> WorkerPool:
    pool = WorkerPool()
    for worker in workers:
        pool.join(worker, 0.0)
        pool.credit(credit(worker), 0.0)
    return pool


def test_nobody_works_before_joining_and_saying_what_it_is():
    pool = WorkerPool()
    pool.credit(credit("a"), 0.0)
    assert pool.assign("f", "e", 1.0) is None
    pool.join("a", 0.0)
    assert pool.assign("f", "e", 1.0) is None
    pool.credit(credit("a"), 0.0)
    assert pool.assign("f", "e", 1.0) is not None


def test_no_credit_no_work():
    pool = pool_of("a")
    assert [pool.assign("f", "e", 1.0) is not None for _ in range(3)] == [True, True, False]
    pool.credit(credit("a", done=0, held=1), 0.1)
    given = pool.assign("f", "e", 1.0)
    assert given is not None
    assert given.seq == 2
    assert pool.assign("f", "e", 1.0) is None


def test_the_worker_that_holds_the_face_comes_first_then_the_one_with_most_credit():
    pool = pool_of("a", "b")
    pool.credit(credit("b", faces=("f",)), 0.0)
    workers = [given.worker for given in (pool.assign("f", "e", 1.0) for _ in range(4)) if given]
    assert workers == ["b", "b", "a", "a"]
    pool = pool_of("a", "b")
    workers = [given.worker for given in (pool.assign("f", "e", 1.0) for _ in range(4)) if given]
    assert sorted(workers[:2]) == ["a", "b"]


def test_a_missed_deadline_withdraws_the_credit_until_the_work_is_done():
    pool = pool_of("a")
    pool.assign("f", "e", 0.2)
    pool.expire(0.1)
    assert pool.free() == 1
    pool.expire(0.3)
    assert pool.assign("f", "e", 1.0) is None
    pool.credit(credit("a", done=-1, held=1), 1.0)  # it still has it
    assert pool.assign("f", "e", 2.0) is None
    pool.credit(credit("a", done=0), 1.1)
    assert pool.assign("f", "e", 2.0) is not None


def test_work_lost_on_the_way_is_forgotten_and_a_worker_that_misses_again_and_again_waits_longer():
    pool = pool_of("a")
    waits = []
    now = 0.0
    for _ in range(4):
        while pool.assign("f", "e", now + 0.1) is None:
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
    workers = {given.worker for given in (pool.assign("f", "e", 2.0) for _ in range(4)) if given}
    assert workers == {"b"}


def test_leaving_loses_what_was_held_and_frees_the_rest():
    pool = pool_of("a", "b")
    for _ in range(4):
        pool.assign("f", "e", 1.0)
    pool.leave("a")
    assert pool.counters["lost"] == 2
    assert pool.waiting_for() == 2
    assert list(pool) == ["b"]
    pool.leave("nobody")
    assert pool.counters["left"] == 1


def test_all_work_is_made_for_one_engine():
    pool = pool_of("a")
    pool.join("b", 0.5)
    pool.credit(credit("b", engine="other"), 0.5)
    engine = pool.engine()
    assert engine is not None
    assert engine.engine == "e"
    workers = [given.worker for given in (pool.assign("f", "e", 1.0) for _ in range(4)) if given]
    assert workers == ["a", "a"]
    pool.leave("a")
    engine = pool.engine()
    assert engine is not None
    assert engine.engine == "other"
