"""`make mutants`: each guard of the protocol is removed from a copy of the tree, and the test that holds it must fail.

A guard is named by its own text, which must stand once in the product; where a change of the code has moved or reworded
it, this says so and fails, so that no mutant is quietly a patch of nothing. The tests themselves must pass before.

    python -m tests.mutants            all of them
    python -m tests.mutants floor      those whose name holds a word
"""

from __future__ import annotations

import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("memory", "cachewarm", "memsvc")
LEFT_OUT = (".git", ".venv", ".memsvc", "__pycache__", ".hypothesis", ".*_cache")
READ, VERSIONS, PENDING = "tests/memory/test_read.py", "tests/memory/test_versions.py", "tests/memory/test_pending.py"
DELIVERY, FLIGHTS, GATE = (
    "tests/memory/test_delivery.py",
    "tests/memory/test_flights.py",
    "tests/memory/backends/test_gate.py",
)
OUTAGES = "tests/memory/api/test_outages.py"
SESSIONS = "tests/memory/stm/test_search.py"
HOT = "tests/memory/api/test_hot.py"
PLATFORM = "tests/memory/backends/test_mem0_platform.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard: its text, what stands in its place without it, and the test that must fail then."""

    name: str
    guard: str
    without: str
    test: str


MUTANTS = (
    Mutant(
        "version read after the load",
        "    return _counted(answer._replace(pending=unstored), policy)\n",
        "    late = versions.current(query.scope.pin, policy.generation)\n"
        "    entry = replace(answer.entry, version=late.number)\n"
        "    stack.L0.put(query, entry, late, policy.generation, entry.as_of)\n"
        "    return _counted(answer._replace(pending=unstored), policy)\n",
        f"{READ}::test_b8_an_answer_loaded_across_a_write_is_never_served_after_it",
    ),
    Mutant(
        "look-up in L0 without equality",
        "if held is None or held.entry.version != version.number:",
        "if held is None:",
        f"{READ}::test_g2_the_search_after_a_completed_write_sees_it_on_every_process",
    ),
    Mutant(
        "look-up in L2 without equality",
        "if copy is not None and copy.version == version.number:",
        "if copy is not None:",
        f"{READ}::test_g2_the_search_after_a_completed_write_sees_it_on_every_process",
    ),
    Mutant(
        "fill without compare",
        "if tonumber(ARGV[entry + 1]) < least then",
        "if false then",
        f"{READ}::test_b8_a_late_fill_costs_no_search_of_what_was_computed_after_it",
    ),
    Mutant(
        "lease counted from the SET",
        "left = _lease_ms() - int((clock.now() - version.confirmed_at) * 1000)",
        "left = _lease_ms()",
        f"{VERSIONS}::test_a_publication_counts_its_lease_from_before_the_rows_were_locked",
    ),
    Mutant(
        "copy of a version stored without its token",
        "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end\nlocal copy",
        "local copy",
        f"{VERSIONS}::test_b6_a_late_reader_cannot_store_under_anothers_token",
    ),
    Mutant(
        "copy of the pending set stored without its token",
        "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end\nlocal left",
        "local left",
        f"{PENDING}::test_a_late_reader_cannot_store_under_anothers_token",
    ),
    Mutant(
        "completion that does not wait out the lease",
        "    if not versions.publish(moved):\n        return False\n",
        "    versions.publish(moved)\n",
        f"{DELIVERY}::test_b7_without_confirmation_the_job_stays_stored_for_a_whole_lease",
    ),
    Mutant(
        "version unmoved on an unknown outcome",
        "moved = completion.move(job)\n        Job.objects.filter(pk=job.pk).update(\n            next_attempt_at=",
        "moved = []\n        Job.objects.filter(pk=job.pk).update(\n            next_attempt_at=",
        f"{DELIVERY}::test_b2_the_version_moves_after_an_unknown_outcome",
    ),
    Mutant(
        "version moved before the acknowledgement, and not after it",
        "        moved = move(job) if touched else []\n",
        "        moved = [versions.stored(pin) for pin in target.pins()]\n",
        f"{DELIVERY}::test_b2_the_version_moves_after_the_acknowledgement",
    ),
    Mutant(
        "a plain counter as version",
        "version = greatest(p.version + 1, excluded.version)",
        "version = p.version + 1",
        f"{VERSIONS}::test_a_version_is_never_one_that_was_before_a_restore",
    ),
    Mutant(
        "a version that goes back with the clock",
        "version = greatest(p.version + 1, excluded.version)",
        "version = excluded.version",
        f"{VERSIONS}::test_a_clock_set_back_cannot_repeat_a_version",
    ),
    Mutant(
        "floor ignored by eventual",
        "least = max(version.floor, wish.min_version)",
        "least = wish.min_version",
        f"{READ}::test_b9_eventual_serves_nothing_below_the_floor",
    ),
    Mutant(
        "floor ignored in an outage",
        "found.entry.version >= version.floor",
        "True",
        f"{READ}::test_b9_an_outage_serves_nothing_below_the_floor",
    ),
    Mutant(
        "settle time 0",
        "        settle_seconds(attempt.job) - (now",
        "        0.0 - (now",
        f"{DELIVERY}::test_a5_the_attempt_of_a_killed_worker_may_still_run_inside_a_remote_mem0",
    ),
    Mutant(
        "no look for the mark",
        "        _adopt(job, adds, found.memories)\n",
        "",
        f"{DELIVERY}::test_a5_a_lost_answer_is_found_by_its_mark_and_not_sent_again",
    ),
    Mutant(
        "a look that takes as long as it takes",
        "LOOK_TEXTS = 10\n",
        "LOOK_TEXTS = 1000\n",
        f"{DELIVERY}::test_a6_a_look_for_many_texts_ends_and_finds_each",
    ),
    Mutant(
        "no note of what is about to be removed",
        "        if surplus:\n            lanes.note_removing(job, hold)\n",
        "",
        f"{DELIVERY}::test_b2_a_look_whose_worker_dies_after_it_removed_a_copy_is_made_good_by_the_next",
    ),
    Mutant(
        "half a conversation taken for the whole",
        '    if job.kind != "extract" or backend.extracts:\n',
        "    if True:\n",
        f"{DELIVERY}::test_g3_of_a_conversation_stored_by_halves_the_rest_is_stored_too",
    ),
    Mutant(
        "no fence on the lane",
        ".filter(pk=hold.lane, fence=hold.fence).exists():\n        raise LaneLost\n",
        ".filter(pk=hold.lane).exists():\n        raise LaneLost\n",
        f"{DELIVERY}::test_a2_a_holder_that_lost_its_lane_records_nothing",
    ),
    Mutant(
        "a call begun that the lane's lease might not outlast",
        "if clock.now() >= begin_by:",
        "if False:",
        f"{DELIVERY}::test_a2_nothing_is_sent_that_the_lease_might_not_outlast",
    ),
    Mutant(
        "a lane's lock that shuts out those who accept for it",
        "Lane.objects.select_for_update(no_key=True).filter(",
        "Lane.objects.select_for_update().filter(",
        f"{DELIVERY}::test_a_write_is_accepted_while_a_delivery_of_its_lane_is_about_to_move_the_version",
    ),
    Mutant(
        "pending read after the version",
        "        unstored = _quietly(lambda: pending.current(pin, policy.generation))\n",
        "        early = _quietly(lambda: versions.current(pin, policy.generation))\n"
        "        unstored = _quietly(lambda: pending.current(pin, policy.generation))\n"
        "        if early is not None:\n            return unstored, early\n",
        f"{PENDING}::test_no_fact_is_in_neither_while_a_job_ends",
    ),
    Mutant(
        "pending read after the version, where both are read together",
        "    found = stored(pin)\n    version = versions.stored(pin)\n",
        "    version = versions.stored(pin)\n    found = stored(pin)\n",
        f"{PENDING}::test_no_fact_is_in_neither_for_whom_redis_had_nothing",
    ),
    Mutant(
        "tokens taken after PostgreSQL was read",
        "    found = stored(pin)\n    version = versions.stored(pin)\n",
        "    found = stored(pin)\n    version = versions.stored(pin)\n"
        "    mine, number = versions.take(_copied(pin, generation), versions.copied(pin, generation))\n",
        f"{PENDING}::test_no_copy_is_kept_of_what_a_write_changed_while_it_was_read",
    ),
    Mutant(
        "a copy of the pending set that outlives a version",
        "redis.call('DEL', unpack(KEYS, 2))",
        "redis.call('DEL', KEYS[2])",
        f"{PENDING}::test_c1_a_copy_that_outlived_its_job_goes_with_the_next_version",
    ),
    Mutant(
        "a delete or change of what may still be shown as pending",
        "    if _stored_lately(job, target).exists():\n        return True\n",
        "",
        f"{DELIVERY}::test_c1_what_readers_may_still_be_shown_as_pending_stays_until_then",
    ),
    Mutant(
        "cut listing taken as complete",
        "complete=len(memories) < LIST_LIMIT)",
        "complete=True)",
        "tests/memory/backends/test_mem0_rest.py::test_a_listing_of_a_thousand_is_taken_as_cut",
    ),
    Mutant(
        "cut listing ranked in place of Mem0",
        "    return held.complete and _comparable(held, made_by)",
        "    return _comparable(held, made_by)",
        "tests/memory/layers/test_l3_summaries.py::test_an_incomplete_list_never_ranks_in_place_of_mem0",
    ),
    Mutant(
        "error cached as empty",
        "        found, ranking = ask_mem0(query, policy, deadline)\n",
        "        try:\n            found, ranking = ask_mem0(query, policy, deadline)\n"
        '        except OriginError:\n            found, ranking = [], "upstream"\n',
        f"{READ}::test_g9_an_error_is_not_cached_as_empty",
    ),
    Mutant(
        "degraded answer stored in L2",
        "    best = max(allowed, key=lambda found: found.entry.version)\n",
        "    best = max(allowed, key=lambda found: found.entry.version)\n"
        "    _fill(query, replace(best.entry, version=version.number), version, policy, trip)\n",
        f"{READ}::test_a_degraded_answer_is_not_kept",
    ),
    Mutant(
        "key without project",
        "{{{pin.project}.{generation}.",
        "{{{generation}.",
        f"{READ}::test_g1_the_same_question_of_another_user_or_project_is_another_question",
    ),
    Mutant(
        "tombstone ignored by a job accepted before",
        '        **gone, state="failed", reason=ERASED, completed_at=Now(), dismissed_at=Now()\n',
        "        payload_bytes=0\n",
        "tests/memory/test_erase.py::test_what_waits_ends_erased_and_is_never_sent",
    ),
    Mutant(
        "tombstone ignored by a job under way",
        "if job is not None and not Job.objects.filter(pk=job.pk, state__in=SENDABLE).exists():",
        "if False:",
        "tests/memory/test_erase.py::test_a_delivery_under_way_is_waited_out_and_its_memory_goes",
    ),
    Mutant(
        "valid_until ignored in L0",
        "held.generation != generation or held.expired",
        "held.generation != generation",
        f"{READ}::test_b10_an_answer_dies_with_the_memory_that_expires_in_it",
    ),
    Mutant(
        "valid_until ignored in L2",
        "return not expired(entry, _store_now(trip)) and served(entry, policy)",
        "return served(entry, policy)",
        f"{READ}::test_b10_an_entry_in_redis_is_not_served_after_something_in_it_has_expired",
    ),
    Mutant(
        "filled shortly before it expires",
        "store_now + FILL_MARGIN_US < entry.valid_until",
        "True",
        f"{READ}::test_b10_an_answer_dies_with_the_memory_that_expires_in_it",
    ),
    Mutant(
        "an answer of another ranking served",
        "return entry.ranking in policy.served",
        'return entry.ranking == "upstream" or policy.local_search == "on"',
        "tests/memory/layers/test_l3_summaries.py::test_c3_a_ranking_by_another_policy_is_not_served",
    ),
    Mutant(
        "an answer ranked again served under another ranking",
        '"reranked") if self.reranks else ("upstream", self.ranking)',
        '"reranked")',
        f"{READ}::test_c3_an_answer_of_another_ranking_is_not_served_once_the_setting_has_changed",
    ),
    # -- of the same kind, beyond the protocol's own list -------------------------------------------------------------
    Mutant(
        "bounded counted from the fill",
        "if held is None or (clock.now() - held.confirmed_at) * 1000 > milliseconds or not",
        "if held is None or not",
        f"{READ}::test_g5_bounded_answers_without_any_store_until_its_age",
    ),
    Mutant(
        "eventual of any age",
        " and one[2] <= oldest]",
        "]",
        f"{READ}::test_eventual_is_at_most_so_old",
    ),
    Mutant(
        "a generation believed for ever",
        "believed=asked - last[1] < settings.VERSION_LEASE_SECONDS",
        "believed=True",
        f"{OUTAGES}::test_b5_a_generation_is_not_believed_longer_than_a_lease",
    ),
    Mutant(
        "a copy served although its floor is not known",
        "_confirmed(query, policy, settings.BOUNDED_MAX_AGE_MS)",
        "_confirmed(query, policy, 10**9)",
        f"{OUTAGES}::test_b9_without_postgresql_others_get_the_copy_only_while_its_floor_is_known",
    ),
    Mutant(
        "a wait for PostgreSQL without end",
        "poller.poll(None if limit == inf else limit * 1000)",
        "poller.poll(None if limit == inf else 60_000)",
        "tests/memsvc/test_postgres_pool.py"
        "::test_a_statement_without_an_answer_is_given_up_and_its_connection_never_used_again",
    ),
    Mutant(
        "an outage of PostgreSQL waited for by each request",
        '            if self._trouble != "silent":\n                self._trouble = trouble\n',
        "",
        "tests/memsvc/test_postgres_pool.py"
        "::test_while_postgresql_refuses_connections_everybody_is_told_at_once_and_one_thread_asks",
    ),
    Mutant(
        "a flight's lease taken without a look at what has landed",
        "            if landed is not None:\n",
        "            if landed is not None and not took:\n",
        f"{FLIGHTS}::test_whoever_finds_it_computed_meanwhile_does_not_load",
    ),
    Mutant(
        "a flight's lease that others may end",
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0",
        "return redis.call('DEL', KEYS[1])",
        f"{FLIGHTS}::test_a_holder_whose_lease_ran_out_does_not_end_the_next_ones",
    ),
    Mutant(
        "a flight's lease shorter than its load",
        "(deadline.remaining() + MARGIN_SECONDS) * 1000)\n    ((took",
        "100)\n    ((took",
        f"{FLIGHTS}::test_the_lease_outlasts_the_load_it_is_held_for",
    ),
    Mutant(
        "flights of one process only",
        "        entry, here = stack.L2.load_once(query, version.number, policy.generation, ask, good, deadline)\n",
        "        entry, here = ask(), True\n",
        "tests/test_one_search.py",
    ),
    Mutant(
        "no rate before Mem0",
        "if over > 0 then return {0, math.ceil(over)} end",
        "",
        f"{GATE}::test_g7_two_processes_together_stay_within_the_rate",
    ),
    Mutant(
        "warming before live calls",
        "part = WARMING_PART if _warming.get() else 1.0",
        "part = 1.0",
        f"{GATE}::test_warming_leaves_half_to_live_calls",
    ),
    Mutant(
        "everything at once after an outage",
        "                gate.of(self.name).ramp()\n",
        "                pass\n",
        f"{GATE}::test_a_breaker_that_closes_opens_the_gate_a_little_at_first",
    ),
    Mutant(
        "pending read after the version in the one round trip",
        "            (open_jobs, copy, stored, *more), time = redis_wire.send(reading)\n",
        "            name = keys.version(query.slot[0], generation)\n"
        '            first = redis_wire.packed(("GET", name))\n'
        "            both = first[0] + reading[0], 1 + reading[1]\n"
        "            copy, (open_jobs, _, stored, *more), time = redis_wire.send(both)\n",
        f"{SESSIONS}::test_c1_of_the_one_round_trip_what_is_pending_comes_before_the_version",
    ),
    Mutant(
        "a key's scope ignored before Django",
        "    return caller if view.scope in caller.scopes else None\n",
        "    return caller\n",
        f"{HOT}::test_nobody_can_tell_which_of_them_answered",
    ),
    Mutant(
        "what a body asks known before Django, whoever sends it",
        "key = (view, caller.project, caller.user_id, raw)",
        "key = (view, caller.project, None, raw)",
        f"{HOT}::test_g1_a_body_that_another_has_sent_is_still_the_own_keys_question",
    ),
    Mutant(
        "a request counted twice against its key's limit",
        "request.META.get(STANDING) or limits.take(",
        "limits.take(",
        f"{HOT}::test_nobody_can_tell_which_of_them_answered",
    ),
    Mutant(
        "what is pending left out before Django",
        "if trip.pending is None or trip.pending.of(query.scope):",
        "if trip.pending is None:",
        f"{HOT}::test_nobody_can_tell_which_of_them_answered",
    ),
    Mutant(
        "what is pending left out where the version alone is asked for",
        "    if unstored is None or unstored.of(query.scope) or not",
        "    if unstored is None or not",
        f"{HOT}::test_nobody_can_tell_which_of_them_answered",
    ),
    Mutant(
        "an answer at hand although the caller knows a later version",
        "    return version is not None and version.number >= wish.min_version\n",
        "    return version is not None\n",
        f"{HOT}::test_nobody_can_tell_which_of_them_answered",
    ),
    Mutant(
        "a revoked key known for ever before Django",
        "    if seen is None or clock.now() - seen.asked_at >= FRESH_SECONDS:\n        return None\n",
        "    if seen is None:\n        return None\n",
        f"{HOT}::test_what_this_process_knows_of_keys_and_projects_is_as_fresh_as_for_the_view",
    ),
    Mutant(
        "a line to CACHE used again after a time-out",
        "            if not good:\n                line.close()\n        self._idle.append(line)\n",
        "            self._idle.append(line)\n",
        "tests/memory/test_redis_wire.py::test_g1_what_came_too_late_answers_nobody",
    ),
    Mutant(
        "a session's version read after its messages",
        "    told = tuple(_told(session, said[0].turn if said else 1))\n",
        "    told = tuple(_told(session, said[0].turn if said else 1))\n    session.refresh_from_db()\n",
        f"{SESSIONS}::test_b8_what_is_said_while_a_session_is_read_is_found_by_the_next_search",
    ),
    Mutant(
        "the token for a session's version taken after it was read",
        "    _, token = versions.take(user, session_id, policy.generation)\n"
        "    talk = conversation.read(user, session_id)\n",
        "    talk = conversation.read(user, session_id)\n"
        "    _, token = versions.take(user, session_id, policy.generation)\n",
        f"{SESSIONS}::test_b6_a_session_read_before_something_was_said_is_not_kept_as_current",
    ),
    Mutant(
        "a session's version unmoved when its messages are handed over",
        "    session_versions.move(session)\n    return jobs\n",
        "    return jobs\n",
        "tests/memory/stm/test_extraction.py::test_c1_a_fact_is_found_once_before_while_and_after_its_extraction",
    ),
    Mutant(
        "a message that forgets which job took it",
        ".update(job_id=jobs[-1].job_id)",
        ".update(job_id=None)",
        "tests/memory/stm/test_extraction.py::test_c1_a_fact_is_found_once_before_while_and_after_its_extraction",
    ),
    Mutant(
        "an add to the Platform acknowledged before its event has succeeded",
        'if status == "SUCCEEDED":',
        'if status in ("SUCCEEDED", "PENDING", "RUNNING"):',
        f"{PLATFORM}::test_an_add_is_acknowledged_when_its_event_has_succeeded",
    ),
    Mutant(
        "an event that has not ended taken as never sent",
        'raise OriginTimeout("the add\'s event had not ended by the deadline", sent=True)',
        'raise OriginTimeout("the add\'s event had not ended by the deadline", sent=False)',
        f"{PLATFORM}::test_an_event_that_has_not_ended_by_the_deadline_is_of_unknown_outcome",
    ),
    Mutant(
        "pages short of their count taken as complete",
        'return list(rows.values()), len(rows) == answer["count"]',
        "return list(rows.values()), True",
        f"{PLATFORM}::test_a_listing_that_does_not_hold_what_was_counted_is_incomplete",
    ),
)


def main(words: Sequence[str]) -> int:
    """Try the mutants whose names hold one of the words; 0 if every one is caught."""
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    tests = sorted({one.test for one in chosen})
    print(f"{len(tests)} tests without any mutant: ", end="", flush=True)
    status, said = _pytest(ROOT, tests)
    print("pass" if status == 0 else f"FAIL\n{said}", flush=True)
    if status:
        return 1
    results = [(one, _tried(one)) for one in chosen]
    print("\n| guard removed | outcome | by |\n|---|---|---|")
    for one, outcome in results:
        print(f"| {one.name} | {outcome} | `{one.test}` |")
    caught = sum(outcome == "caught" for _, outcome in results)
    print(f"\n{caught} of {len(results)} caught")
    return int(caught < len(results))


def _tried(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory(prefix="memsvc-mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        found = places(tree, mutant)
        if len(found) != 1:
            outcome = f"NO GUARD: its text stands in {len(found)} places"
        else:
            text = found[0].read_text()
            found[0].write_text(text.replace(mutant.guard, mutant.without))
            py_compile.compile(str(found[0]), doraise=True)
            status, _ = _pytest(tree, [mutant.test])
            outcome = {0: "SURVIVED", 1: "caught"}.get(status, f"BROKEN: pytest ended with {status}")
    print(f"{outcome:8} {mutant.name}", flush=True)
    return outcome


def places(tree: Path, mutant: Mutant) -> list[Path]:
    """The files of the product that hold its guard's text, each as often as it stands there."""
    files = [path for name in PRODUCT for path in sorted((tree / name).rglob("*.py"))]
    return [path for path in files for _ in range(path.read_text().count(mutant.guard))]


def _pytest(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status (1: a test failed), and the end of what it said."""
    argv = [sys.executable, "-m", "memsvc.embedded", "test", "--", *tests, "-q", "-x", "-p", "no:randomly"]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)
    return done.returncode, "\n".join(done.stdout.splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
