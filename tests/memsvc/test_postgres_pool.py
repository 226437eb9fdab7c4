"""Connections to PostgreSQL are few, shared, and good when they are handed out."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial

import psycopg2
import pytest
from django.db import OperationalError, ProgrammingError, connection, connections, transaction
from django.db.backends.base.base import NO_DB_ALIAS

from memory import clock
from memsvc.postgres import base, waiting
from memsvc.postgres.pool import Pool, PoolExhausted, PostgresAway
from tests.live import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def connect() -> Callable[[], psycopg2.extensions.connection]:
    params = connection.get_connection_params()
    factory = partial(waiting.Connection, connect_seconds=5, statement_seconds=5)
    return lambda: psycopg2.connect(**params, connection_factory=factory)


@pytest.fixture
def pool(connect: Callable[[], psycopg2.extensions.connection]) -> Iterator[Pool]:
    pool = Pool(connect, size=2, seconds=0.05)
    yield pool
    pool.close()


@pytest.fixture
def small() -> Iterator[None]:
    """Django's own connections, two at most in this process."""
    connection.close()
    connection.close_pool()
    before = dict(connection.settings_dict)
    connection.settings_dict.update(POOL_SIZE=2, POOL_TIMEOUT_SECONDS=0.1)
    yield
    connection.close()
    connection.close_pool()
    connection.settings_dict.update(before)


def backend(of: psycopg2.extensions.connection) -> int:
    return of.info.backend_pid


def end_backend(connect: Callable[[], psycopg2.extensions.connection], pid: int) -> None:
    """As a restart of PostgreSQL does to each connection."""
    with closing(connect()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert cursor.fetchone() == (True,)


def test_a_returned_connection_is_reused(pool):
    first = pool.take()
    pid = backend(first)
    pool.give(first)
    assert backend(pool.take()) == pid


def test_the_most_recently_used_connection_comes_first(pool):
    old, new = pool.take(), pool.take()
    pool.give(old)
    pool.give(new)
    assert pool.take() is new


def test_no_more_than_its_size_are_in_use_and_the_next_caller_is_told(pool):
    held = [pool.take(), pool.take()]
    with pytest.raises(PoolExhausted):
        pool.take()
    pool.give(held[0])
    assert pool.take() is held[0]


def test_a_waiting_thread_gets_what_another_returns(connect):
    pool = Pool(connect, size=1, seconds=30)
    held = pool.take()
    asked = threading.Event()

    def wait() -> psycopg2.extensions.connection:
        asked.set()
        return pool.take()

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait)
        asked.wait()
        pool.give(held)
        assert waiting.result() is held
    pool.close()


def test_a_connection_that_died_while_idle_is_replaced_before_anyone_gets_it(pool, connect):
    dead = pool.take()
    pid = backend(dead)
    pool.give(dead)
    end_backend(connect, pid)
    with pool.take().cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_a_connection_that_died_in_use_is_discarded_and_its_place_is_free(pool, connect):
    for _ in range(3):
        held = pool.take()
        end_backend(connect, backend(held))
        with pytest.raises(psycopg2.OperationalError), held.cursor() as cursor:
            cursor.execute("SELECT 1")
        pool.give(held)
    assert {backend(pool.take()), backend(pool.take())}


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT no_such_column"])
def test_what_a_caller_left_open_is_rolled_back(pool, statement):
    held = pool.take()
    with held.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE left_open (id int)")
        with suppress(psycopg2.Error):
            cursor.execute(statement)
    pool.give(held)
    again = pool.take()
    with again.cursor() as cursor:
        cursor.execute("SELECT to_regclass('left_open')")
        assert again is held
        assert cursor.fetchone() == (None,)


def test_a_place_is_not_lost_with_a_thread_that_never_returned_its_connection(pool):
    for _ in range(3):
        thread = threading.Thread(target=pool.take)
        thread.start()
        thread.join()
    gc.collect()
    assert {pool.take(), pool.take()}


def test_a_place_is_not_lost_when_postgresql_does_not_answer(connect):
    answers = [psycopg2.OperationalError("away")]

    def flaky() -> waiting.Connection:
        if answers:
            raise answers.pop()
        return connect()

    pool = Pool(flaky, size=1, seconds=0.05)
    with pytest.raises(psycopg2.OperationalError):
        pool.take()
    eventually(lambda: not pool._asking)
    assert not pool.take().closed
    pool.close()


def test_while_postgresql_refuses_connections_everybody_is_told_at_once_and_one_thread_asks(connect):
    away = threading.Event()
    tried: list[str] = []

    def refuse() -> waiting.Connection:
        tried.append(threading.current_thread().name)
        if not away.is_set():
            raise psycopg2.OperationalError("away")
        return connect()

    pool = Pool(refuse, size=2, seconds=5)
    with pytest.raises(psycopg2.OperationalError, match="away"):
        pool.take()
    for _ in range(20):
        with pytest.raises(PostgresAway):
            pool.take()
    assert [name for name in tried if name != "postgres-away"] == ["MainThread"]
    away.set()
    eventually(lambda: not pool._trouble)
    assert not pool.take().closed
    pool.close()


def test_a_connection_that_stands_is_good_while_no_new_one_can_be_made(connect):
    """As when PostgreSQL has as many clients as it takes."""
    first = connect()
    answers = [first]
    pool = Pool(lambda: answers.pop() if answers else refused(), size=2, seconds=5)

    def refused() -> waiting.Connection:
        raise psycopg2.OperationalError("too many clients")

    held = pool.take()
    with pytest.raises(psycopg2.OperationalError):
        pool.take()
    pool.give(held)
    assert pool.take() is held
    pool.close()


def test_a_statement_without_an_answer_is_given_up_and_its_connection_never_used_again(pool, connect, postgres_stopped):
    held = pool.take()
    postgres_stopped.stop()
    began = clock.now()
    with pytest.raises(waiting.Silence), waiting.patience(0.2), held.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert 0.2 <= clock.now() - began < 2
    assert held.closed
    pool.give(held)
    with pytest.raises(PostgresAway):
        pool.take()
    postgres_stopped.resume()
    eventually(lambda: not pool._trouble)
    assert pool.take() is not held


def test_one_slow_statement_among_others_that_are_answered_closes_nobody_out(pool):
    slow, quick = pool.take(), pool.take()
    with ThreadPoolExecutor(1) as executor:

        def late() -> None:
            with waiting.patience(0.3), slow.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(5)")

        given_up = executor.submit(late)
        while not given_up.done():
            with quick.cursor() as cursor:
                cursor.execute("SELECT 1")
        assert isinstance(given_up.exception(), waiting.Silence)
    pool.give(slow)
    assert not pool._trouble
    assert not pool.take().closed


def test_a_deadline_that_was_almost_over_tells_nothing_about_postgresql(pool):
    held = pool.take()
    with pytest.raises(waiting.Silence), waiting.patience(until=clock.now()), held.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")
    pool.give(held)
    assert not pool.take().closed


def test_nothing_waits_longer_than_the_work_in_hand_is_of_use(pool):
    held = pool.take()
    with pytest.raises(waiting.Silence), waiting.patience(until=clock.now() + 0.1), held.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")


def test_returning_twice_gives_one_place(pool):
    held = pool.take()
    pool.give(held)
    pool.give(held)
    taken = [pool.take(), pool.take()]
    assert taken[0] is not taken[1]
    with pytest.raises(PoolExhausted):
        pool.take()


def test_many_threads_share_few_connections_without_one_being_used_by_two(small):
    connection.settings_dict["POOL_TIMEOUT_SECONDS"] = 60
    connection.close_pool()
    in_use: set[int] = set()
    used: set[int] = set()
    lock = threading.Lock()

    def work(_: int) -> None:
        own = connections["default"]
        with own.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]
            with lock:
                assert pid not in in_use
                in_use.add(pid)
                used.add(pid)
            cursor.execute("SELECT pg_sleep(0.001)")
            with lock:
                in_use.remove(pid)
        own.close()

    with ThreadPoolExecutor(16) as executor:
        list(executor.map(work, range(200)))
    assert len(used) <= 2


def test_django_sees_an_operational_error_when_every_connection_is_in_use(small):
    places = threading.Barrier(3)

    def hold() -> None:
        connections["default"].ensure_connection()
        places.wait()
        places.wait()
        connections["default"].close()

    with ThreadPoolExecutor(2) as executor:
        held = [executor.submit(hold) for _ in range(2)]
        places.wait()
        try:
            with pytest.raises(OperationalError, match="no PostgreSQL connection came free"):
                connection.ensure_connection()
        finally:
            places.wait()
        for holder in held:
            holder.result()
    connection.ensure_connection()


def test_closing_inside_a_transaction_never_leaves_it_with_somebody_elses_connection(small):
    with transaction.atomic():
        connection.close()
        with pytest.raises(ProgrammingError, match="Cannot open a new connection in an atomic block"):
            connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_a_statement_has_a_limit(small):
    connection.settings_dict["STATEMENT_TIMEOUT_SECONDS"] = 0.05
    with pytest.raises(OperationalError, match="statement timeout"), connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")


def test_a_dead_server_is_noticed_in_bounded_time():
    params = connection.get_connection_params()
    assert params["connect_timeout"] >= connection.settings_dict["POOL_TIMEOUT_SECONDS"]
    assert {"keepalives_idle", "tcp_user_timeout"} <= params.keys()


def test_the_connection_that_makes_test_databases_is_not_pooled():
    plain = base.DatabaseWrapper({**connection.settings_dict, "NAME": None}, alias=NO_DB_ALIAS)
    plain.ensure_connection()
    held = plain.connection
    plain.close()
    assert held.closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own(small):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        parents = cursor.fetchone()[0]
    connection.close()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            os.write(writing, str(cursor.fetchone()[0]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != parents
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone()[0] == parents
