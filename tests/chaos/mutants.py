"""Planted bugs, each of which the suite has to catch: ``python -m tests.chaos.mutants [NAME …]`` (``make mutants``).

Each is put into a copy of the sources, and the tests that should catch it are run on the copy: one has to fail.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("src", "tests", "examples", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in a file of the package; ``tests`` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "acknowledged before it is handled",
        "worker.py",
        "        slot.parcel = parcel\n",
        "        slot.parcel = parcel\n        parcel.intake.settle(parcel.delivery)\n",
        "tests/test_worker.py tests/simulation",
    ),
    Mutant(
        "the copy is not confirmed before the original is acknowledged",
        "storing.py",
        "            verdict = await (transport.delay",
        "            transport.delay(outgoing, seconds) if seconds > 0 else transport.publish(outgoing)\n"
        "            return\n"
        "            verdict = await (transport.delay",
        "tests/test_worker.py tests/simulation",
    ),
    Mutant(
        "a refused copy counts as stored",
        "storing.py",
        "            if verdict.kind is VerdictKind.CONFIRMED:",
        "            if verdict.kind in (VerdictKind.CONFIRMED, VerdictKind.REFUSED):",
        "tests/simulation tests/test_worker.py",
    ),
    Mutant(
        "attempts are counted per process",
        "unpacking.py",
        "attempt=attempt_of(headers, self._work.retry.attempts)",
        "attempt=1 + around.__dict__.setdefault('seen', 0) if hasattr(around, '__dict__') else 1",
        "tests/test_worker.py tests/test_pipe.py",
    ),
    Mutant(
        "a forged attempt lengthens a life",
        "message.py",
        "return max(1, min(value, attempts))",
        "return value",
        "tests/test_copies.py tests/test_worker.py",
    ),
    Mutant(
        "unconfirmed publishes are dropped on a reconnect",
        "transports/rabbitmq/publishing.py",
        "        for entry in [one for one in self._pending.values() if not one.held]:",
        "        for entry in [one for one in self._pending.values() if not one.held and not one.sent]:",
        "tests/faults/test_network.py -k cut_at_any_byte_of_a_publish",
    ),
    Mutant(
        "a return is matched to another publish",
        "transports/rabbitmq/fast.py",
        "            number = frames.publish_id(data[at:end])",
        "            number = self._oldest",
        "tests/transports/rabbitmq/test_frames.py -k confirms",
    ),
    Mutant(
        "a nack counts as a confirm",
        "transports/rabbitmq/fast.py",
        "confirmed=code == ACK",
        "confirmed=True",
        "tests/transports/rabbitmq/test_frames.py -k confirms",
    ),
    Mutant(
        "an unroutable message counts as stored",
        "transports/rabbitmq/fast.py",
        "verdict = CONFIRMED if returned is None else Verdict(VerdictKind.UNROUTABLE, returned)",
        "verdict = CONFIRMED",
        "tests/transports/rabbitmq/test_frames.py -k confirms",
    ),
    Mutant(
        "a multiple confirm confirms one",
        "transports/rabbitmq/fast.py",
        "range(self._oldest if bits & 1 else tag, tag + 1)",
        "range(tag, tag + 1)",
        "tests/transports/rabbitmq/test_frames.py -k confirms",
    ),
    Mutant(
        "no deadline for a publish",
        "outlet.py",
        "self._deadlines.add(future, timeout)",
        "self._deadlines.add(future, 1e6)",
        "tests/test_publisher.py tests/simulation",
    ),
    Mutant(
        "a late publish that may be stored is said not to be",
        "outlet.py",
        "future.set_result(_LATE if self._transport.withdraw(future) else _LATE_UNSENT)",
        "self._transport.withdraw(future)\n            future.set_result(_LATE_UNSENT)",
        "tests/test_publisher.py",
    ),
    Mutant(
        "the window does not bound",
        "outlet.py",
        "        if self._waiting or not self._fits(size):\n            return False\n",
        "",
        "tests/test_publisher.py",
    ),
    Mutant(
        "the window is never given back",
        "outlet.py",
        "        self._window.release(len(sent.outgoing.body))\n",
        "",
        "tests/test_publisher.py",
    ),
    Mutant(
        "an acknowledgement of an epoch that is over is written",
        "transports/rabbitmq/consuming.py",
        "if self._channel is None or epoch != self.epoch:",
        "if self._channel is None:",
        "tests/contract -k 'epoch and not memory'",
    ),
    Mutant(
        "multiple covers what is not settled",
        "transports/rabbitmq/acks.py",
        "            if tag == self._prefix + 1:",
        "            if tag > self._prefix:",
        "tests/transports/rabbitmq/test_acks.py",
    ),
    Mutant(
        "what waited in a lost epoch is run",
        "intake.py",
        "    def _on_lost(self, _epoch: int) -> None:\n        self.waiting.clear()\n",
        "    def _on_lost(self, _epoch: int) -> None:\n",
        "tests/test_worker.py",
    ),
    Mutant(
        "what was handled runs again after a lost acknowledgement",
        "worker.py",
        "        if not self._recall.armed:\n            return False\n",
        "        return False\n",
        "tests/test_worker.py",
    ),
    Mutant(
        "handlers are cancelled with their connection",
        "worker.py",
        "        unfinished = {slot.parcel for slot in self._slots.busy}",
        "        for one in self._slots.busy:\n            one.task.cancel()\n"
        "        unfinished = {slot.parcel for slot in self._slots.busy}",
        "tests/test_worker.py",
    ),
    Mutant(
        "no prefetch is asked for",
        "transports/rabbitmq/consuming.py",
        "                    await channel.basic_qos(prefetch_count=self._prefetch)\n                    deliveries",
        "                    deliveries",
        "tests/contract -k 'prefetch and not memory'",
    ),
    Mutant(
        "concurrency does not bound",
        "slots.py",
        "if len(self._alive) < self._limit:",
        "if self._limit:",
        "tests/test_worker.py tests/test_packing.py",
    ),
    Mutant(
        "a handler's timeout does nothing",
        "handling.py",
        "    slot.timed_out = True\n    slot.task.cancel()\n",
        "    slot.timed_out = True\n",
        "tests/test_worker.py",
    ),
    Mutant(
        "stopping does not wait for handlers",
        "worker.py",
        "        await asyncio.gather(self._give_back(), self._until_nothing_runs(seconds))\n",
        "        await self._give_back()\n",
        "tests/test_worker.py",
    ),
    Mutant(
        "what is settled is written only when there is much of it",
        "transports/rabbitmq/consuming.py",
        "        elif self._flushing is None:",
        "        elif False:",
        "tests/transports/rabbitmq/test_fast_path.py -k coalesced",
    ),
    Mutant(
        "a delay is not waited for",
        "transports/rabbitmq/ladder.py",
        'return f"eventpipe.{_spell(units)}.q.{queue}"',
        'return f"eventpipe.{_spell(0)}.q.{queue}"',
        "tests/contract tests/transports/rabbitmq/test_ladder.py -k 'delay or bits'",
    ),
    Mutant(
        "an expired message is handled",
        "handling.py",
        'return "expired" if late else None',
        "return None",
        "tests/test_pipe.py",
    ),
    Mutant(
        "a message that kills its process is never set aside",
        "worker.py",
        "SUSPICIOUS = 2\n",
        "SUSPICIOUS = 10**9\n",
        "tests/test_worker.py",
    ),
    Mutant(
        "properties that do not decode end the connection",
        "transports/rabbitmq/fast.py",
        "        except (Malformed, UnicodeDecodeError) as error:",
        "        except ZeroDivisionError as error:",
        "tests/faults/test_poison.py",
    ),
    Mutant(
        "a frame of any size is taken",
        "transports/rabbitmq/fast.py",
        "or end - at > self.frame_max:",
        "or False:",
        "tests/transports/rabbitmq/test_frames.py",
    ),
    Mutant(
        "the watchdog of aiormq is not fed",
        "transports/rabbitmq/fast.py",
        "            self._feed(HEARTBEAT)  # aiormq's watchdog counts only what it reads itself\n",
        "            pass\n",
        "tests/transports/rabbitmq/test_frames.py",
    ),
    Mutant(
        "a silent broker is not given up",
        "transports/rabbitmq/fast.py",
        "        if silent > 2 * self._heartbeat:",
        "        if silent > 200 * self._heartbeat:",
        "tests/faults/test_network.py -k drops_everything",
    ),
    Mutant(
        "a deleted queue is not declared again",
        "transports/rabbitmq/consuming.py",
        "            await self.redeclare()\n",
        "            pass\n",
        "tests/contract -k 'deleted and not memory'",
    ),
    Mutant(
        "a whole batch is given up for one event",
        "unpacking.py",
        "                parcel.bodies = split(parcel.delivery.body)  # one by one: the others are good",
        "                raise",
        "tests/test_packing.py",
    ),
    Mutant(
        "the events of a pack get the verdict of another",
        "packing.py",
        'verdict.set_result(receipt._replace(id=f"{receipt.id}/{index}"))',
        'verdict.set_result(receipt._replace(id=f"{receipt.id}/0"))',
        "tests/test_packing.py",
    ),
    Mutant(
        "outputs get a new id on each run",
        "publisher.py",
        '    text = f"{cause.id}\\0{cause.queue}\\0{index}"',
        '    import os\n\n    text = f"{os.urandom(8).hex()}{index}"',
        "tests/test_pipe.py",
    ),
    Mutant(
        "TLS trusts anybody",
        "transports/rabbitmq/address.py",
        "            context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "            context.minimum_version = ssl.TLSVersion.TLSv1_2\n"
        "            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n",
        "tests/transports/rabbitmq/test_tls.py",
    ),
    Mutant(
        "an error shows the password",
        "transports/rabbitmq/address.py",
        'return f"{self.scheme}://{self.user}@{host}:{self.port}{vhost}"',
        'return f"{self.scheme}://{self.user}:{self.password}@{host}:{self.port}{vhost}"',
        "tests/transports/rabbitmq/test_connecting.py",
    ),
    Mutant(
        "a stop is taken for the death of a process",
        "worker.py",
        "        return delivery.redelivered and (delivery.delivery_count or 0) + 1 >= SUSPICIOUS",
        "        return False",
        "tests/test_worker.py",
    ),
    Mutant(
        "a stop keeps what has not begun until the last handler has ended",
        "worker.py",
        "await asyncio.gather(self._give_back(), self._until_nothing_runs(seconds))",
        "await self._until_nothing_runs(seconds)",
        "tests/test_worker.py",
    ),
    Mutant(
        "a dead letter is removed before its copy is confirmed",
        "deadletters.py",
        "        if self._copy is not None:\n",
        "        found.intake.settle(found.delivery)\n        if self._copy is not None:\n",
        "tests/test_deadletters.py",
    ),
    Mutant(
        "a replay goes on as another attempt",
        "copies.py",
        "_TRIED = (ATTEMPT, SUSPECT",
        "_TRIED = (SUSPECT",
        "tests/test_deadletters.py",
    ),
    Mutant(
        "a relay marks what was not confirmed",
        "sql/relay.py",
        "[row.position for row in ready if row.position not in failures]",
        "[row.position for row in ready]",
        "tests/sql/test_outbox.py",
    ),
    Mutant(
        "a relay overtakes a row that another relay has",
        "sql/relay.py",
        "            if position not in mine:",
        "            if False:",
        "tests/sql/test_outbox.py -k overtaken",
    ),
    Mutant(
        "two relays take the same rows",
        "sql/relay.py",
        "            .with_for_update(skip_locked=True)\n",
        "",
        "tests/sql/test_outbox.py -k side_by_side",
    ),
    Mutant(
        "a relay ends in the middle of its round",
        "sql/relay.py",
        "        await asyncio.wait([self._task], timeout=self._pipe.drain)\n",
        "",
        "tests/sql/test_outbox.py",
    ),
    Mutant(
        "every message is the inbox's first",
        "sql/inbox.py",
        "(await session.execute(made.returning(table.c.key))).first() is not None",
        "bool((await session.execute(made)).rowcount)",
        "tests/sql/test_inbox.py",
    ),
    Mutant(
        "dependencies end after the message is settled",
        "handling.py",
        "        async with contextlib.AsyncExitStack() as stack:\n",
        "        stack = contextlib.AsyncExitStack()\n        if True:\n",
        "tests/test_depends.py",
    ),
    Mutant(
        "a middleware can leave the handler out",
        "middleware.py",
        "        return await inner()\n",
        "        from .retry import Ack\n        return inner.outcome or Outcome(Ack())\n",
        "tests/test_depends.py",
    ),
    Mutant(
        "a stuck event loop is alive",
        "cli/probes.py",
        "if (silent := time.monotonic() - at) > STUCK_AFTER:",
        "if (silent := time.monotonic() - at) > 1000 * STUCK_AFTER:",
        "tests/cli/test_probes.py -k stuck",
    ),
)


def plant(mutant: Mutant, package: Path) -> None:
    """Change a package's file. Raises ``ValueError`` if it is not as the mutant expects it."""
    path = package / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name!r}: its text is {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))


def survives(mutant: Mutant) -> bool:
    """Run the mutant's tests on a copy that has it; tell whether they all pass."""
    with tempfile.TemporaryDirectory(prefix="eventpipe-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            elif source.exists():
                shutil.copy(source, copy / name)
        plant(mutant, copy / "src" / "eventpipe")
        command = f"{sys.executable} -m pytest -x -q --tb=no --timeout 40 -p no:cacheprovider {mutant.tests}"
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "EVENTPIPE_SEEDS": "300"}
        done = subprocess.run(
            ["sh", "-c", command], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name!r}: pytest could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> None:
    """Run the named mutants, or all; exit 1 if one survives."""
    chosen = [one for one in MUTANTS if not sys.argv[1:] or any(word in one.name for word in sys.argv[1:])]
    alive = 0
    for mutant in chosen:
        begun = time.monotonic()
        survived = survives(mutant)
        alive += survived
        word = "SURVIVED" if survived else "caught"
        print(f"{word}  {mutant.name} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} planted bugs were caught")
    sys.exit(alive > 0)


if __name__ == "__main__":
    main()
