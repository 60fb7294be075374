"""Checks an orchestrator's database against the invariants that must hold after any fault. Shares no code with the product.

Usage: invariants.py DATABASE DOCS FACTS   DATABASE is the SQLite file, DOCS the folder with the printed state machines, FACTS a
JSON file of what was seen outside of the database: {"running": [{"target", "digest"}], "created": [{"target", "task", "attempt",
"digest"}], "fences": {target: number}, "kept": {target: number}, "acknowledged": [promotion]}. Identifiers are UUIDs in text.
Prints one line per violation. Exit code: 0 when there is none, 1 otherwise.
"""

import base64
import hashlib
import json
import re
import sqlite3
import sys
import uuid

LIVE_TASKS = {"assigned", "accepted", "running", "lost"}
ENDED_TASKS = {"succeeded", "failed", "skipped", "cancelled"}
LIVE_JOBS = {"running", "paused"}
# What histories note although it moves nothing: the plan of a promotion is made again when its job starts.
NOTES = {("approved", "replanned", "approved")}


class Checker:
    def __init__(self, database, docs, facts):
        self.db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        self.db.row_factory = sqlite3.Row
        self.docs = docs
        self.facts = facts
        self.violations = []

    def wrong(self, invariant, text):
        self.violations.append(f"{invariant}: {text}")

    def rows(self, statement, *values):
        return self.db.execute(statement, values).fetchall()

    def one_at_a_time(self):
        """I1: at no instant two live attempts on a target, or two live jobs in a lane (its capacity is 1)."""
        target = {row["id"]: row["target_id"] for row in self.rows("SELECT id, target_id FROM tasks")}
        lane = {row["id"]: row["environment_id"] for row in self.rows("SELECT id, environment_id FROM jobs")}
        live = {}
        for row in self.rows("SELECT entity_kind, entity_id, to_state, ordinal FROM transitions ORDER BY ordinal"):
            kind, entity = row["entity_kind"], row["entity_id"]
            place, states = (target, LIVE_TASKS) if kind == "task" else (lane, LIVE_JOBS)
            if entity not in place:
                continue
            held = live.setdefault((kind, place[entity]), set())
            held.discard(entity)
            if row["to_state"] in states:
                held.add(entity)
            if len(held) > 1:
                self.wrong("I1", f"{len(held)} live {kind}s in one place at transition {row['ordinal']}")

    def one_job_per_project(self):
        """I1: of a project one job is live in an environment, however wide its lane; beside one being undone only its rollback."""
        jobs = {
            row["id"]: row
            for row in self.rows("SELECT j.id, j.environment_id, j.rollback_of, r.project_id FROM jobs j JOIN releases r ON r.id = j.release_id")
        }
        live = {}
        for row in self.rows("SELECT entity_id, to_state, ordinal FROM transitions WHERE entity_kind = 'job' ORDER BY ordinal"):
            job = jobs[row["entity_id"]]
            held = live.setdefault((job["environment_id"], job["project_id"]), set())
            held.discard(job["id"])
            if row["to_state"] not in LIVE_JOBS | {"rolling_back"}:
                continue
            for other in held:
                if other != job["rollback_of"] and jobs[other]["rollback_of"] != job["id"]:
                    self.wrong("I1", f"two live jobs of one project at transition {row['ordinal']}")
            held.add(job["id"])

    def moves_are_allowed(self):
        """I3: every move is one of the printed table, made without a gap."""
        for kind, name in (("task", "task-states.md"), ("job", "job-states.md"), ("promotion", "promotion-states.md")):
            allowed = moves(f"{self.docs}/{name}") | NOTES
            last = {}
            statement = "SELECT * FROM transitions WHERE entity_kind = ? ORDER BY ordinal"
            for row in self.rows(statement, kind):
                entity, before = row["entity_id"], last.get(row["entity_id"])
                if before and (row["from_state"] != before["to_state"] or row["seq"] != before["seq"] + 1):
                    self.wrong("I3", f"{kind} moves from {row['from_state']}, was {before['to_state']}")
                if before and (row["from_state"], row["event"], row["to_state"]) not in allowed:
                    self.wrong("I3", f"{kind}: {row['from_state']} {row['event']} -> {row['to_state']} is no move")
                last[entity] = row

    def one_packet_each(self):
        """I4: every attempt that ended has exactly one packet, which says what the attempt's row says."""
        attempts = self.rows(
            "SELECT a.task_id, a.number, a.result, a.finished_at, t.state FROM task_attempts a JOIN tasks t ON t.id = a.task_id"
        )
        for row in attempts:
            packets = self.rows("SELECT result FROM packets WHERE task_id = ? AND attempt = ?", row["task_id"], row["number"])
            over = row["finished_at"] is not None or row["state"] in ENDED_TASKS
            if over and len(packets) != 1:
                self.wrong("I4", f"attempt {row['number']} of {name(row['task_id'])} has {len(packets)} packets")
            if packets and row["result"] and packets[0]["result"] != row["result"]:
                self.wrong("I4", f"attempt says {row['result']}, packet {packets[0]['result']}")

    def every_report_is_taken(self):
        """I4: what an agent still keeps of its reports was taken; the answer may have been lost with the agent, which keeps them then."""
        agents = {name(row["id"]): row["agent_id"] for row in self.rows("SELECT id, agent_id FROM targets")}
        for target, kept in self.facts["kept"].items():
            taken = self.rows("SELECT acknowledged FROM agent_reports WHERE agent_id = ?", agents[target])
            taken = taken[0]["acknowledged"] if taken else 0
            if kept > taken:
                self.wrong("I4", f"reports {taken + 1} to {kept} of the agent of {target} were never taken")

    def what_runs_is_proven(self):
        """I6: what runs on a target is what the newest packet of an attempt that touched it says, whole and nothing else."""
        running = {}
        for seen in self.facts["running"]:
            running.setdefault(seen["target"], []).append(seen["digest"])
        for target in self.rows("SELECT id FROM targets"):
            packets = self.rows(
                "SELECT envelope, result FROM packets WHERE target_id = ? AND result <> 'refused' ORDER BY created_at DESC, id DESC LIMIT 1",
                target["id"],
            )
            if not packets:
                continue
            subjects = payload(packets[0]["envelope"])["subject"]
            said = {one["digest"]["sha256"] for one in subjects if not one["name"].startswith("release:")}
            seen = [digest.removeprefix("sha256:") for digest in running.get(name(target["id"]), [])]
            if set(seen) != said or len(seen) != len(set(seen)):
                self.wrong("I6", f"on {name(target['id'])} run {sorted(seen)}, the {packets[0]['result']} packet says {sorted(said)}")

    def made_by_order(self):
        """I7: every container that was made belongs to an order of its target that names its image."""
        orders = {}
        for row in self.rows(
            "SELECT a.task_id, a.number, a.order_envelope, t.target_id FROM task_attempts a JOIN tasks t ON t.id = a.task_id"
        ):
            services = payload(row["order_envelope"])["manifest"]["services"]
            digests = {service["image"]["digest"] for service in services.values()}
            orders[(name(row["task_id"]), row["number"])] = digests
            orders.setdefault(name(row["target_id"]), set()).update(digests)
        for made in self.facts["created"]:
            key = (made["task"], int(made["attempt"])) if made.get("task") else made["target"]
            if made["digest"] not in orders.get(key, set()):
                self.wrong("I7", f"a container of {made['digest']} was made without an order ({key})")

    def current_follows_history(self):
        """I8: what is recorded as current is the succeeded task with the highest token; active is what succeeded last."""
        for row in self.rows("SELECT target_id, repository, project, task_id FROM target_current"):
            newest = self.rows(
                "SELECT t.id FROM tasks t JOIN jobs j ON j.id = t.job_id JOIN releases r ON r.id = j.release_id "
                "WHERE t.target_id = ? AND r.repository = ? AND r.project = ? AND t.state = 'succeeded' ORDER BY t.fence DESC LIMIT 1",
                row["target_id"],
                row["repository"],
                row["project"],
            )
            if not newest or newest[0]["id"] != row["task_id"]:
                self.wrong("I8", f"current of {name(row['target_id'])} is not its newest success")
            sticker = self.rows(
                "SELECT task_id FROM stickers WHERE target_id = ? AND project = ? ORDER BY id DESC LIMIT 1",
                row["target_id"],
                f"{row['repository']}/{row['project']}",
            )
            if sticker and sticker[0]["task_id"] != row["task_id"]:
                self.wrong("I8", f"the newest sticker of {name(row['target_id'])} is of another task")
        for row in self.rows(
            "SELECT COUNT(*) AS many FROM active_components WHERE superseded_at IS NULL GROUP BY environment_id, project_id, component_id HAVING many > 1"
        ):
            self.wrong("I8", f"{row['many']} active releases of one component")

    def numbers_have_no_gap(self):
        """I9: release numbers of a project are 1 to n."""
        for project in self.rows("SELECT id, last_number FROM projects"):
            numbers = [row["number"] for row in self.rows("SELECT number FROM releases WHERE project_id = ? ORDER BY number", project["id"])]
            if numbers != list(range(1, project["last_number"] + 1)):
                self.wrong("I9", f"numbers are {numbers}, the counter says {project['last_number']}")

    def acknowledged_is_there(self):
        """I12: what a client was told is done is there, once."""
        for promotion in self.facts["acknowledged"]:
            there = self.rows("SELECT COUNT(*) AS many FROM promotions WHERE id = ?", uuid.UUID(promotion).bytes)
            if there[0]["many"] != 1:
                self.wrong("I12", f"promotion {promotion} was acknowledged and is not there")

    def audit_is_whole(self):
        """I13: positions 1 to n, every hash right, the head the last; the tables refuse to be rewritten."""
        previous, last = "sha256:" + "0" * 64, 0
        for row in self.rows("SELECT * FROM audit_events ORDER BY seq"):
            if row["seq"] != last + 1 or row["previous"] != previous:
                self.wrong("I13", f"audit event {row['seq']} does not follow {last}")
            previous, last = hash_of(row), row["seq"]
        head = self.rows("SELECT seq, hash FROM audit_head")[0]
        if (head["seq"], head["hash"]) != (last, previous):
            self.wrong("I13", f"the head is {head['seq']} {head['hash']}, the chain ends at {last} {previous}")
        copy = sqlite3.connect(":memory:")
        self.db.backup(copy)
        for table in ("audit_events", "transitions", "packets", "decisions", "stickers"):
            if not copy.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall():
                continue
            column = copy.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
            for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
                try:
                    copy.execute(statement)
                    self.wrong("I13", f"{statement} is not refused")
                except sqlite3.DatabaseError:
                    pass

    def tokens_rise_by_one(self):
        """I17: the tokens of a target's attempts are 1 to n, and no agent has seen a higher one."""
        for target in self.rows("SELECT id, fence FROM targets"):
            fences = [
                row["fence"]
                for row in self.rows(
                    "SELECT a.fence FROM task_attempts a JOIN tasks t ON t.id = a.task_id WHERE t.target_id = ? ORDER BY a.fence", target["id"]
                )
            ]
            if fences != list(range(1, target["fence"] + 1)):
                self.wrong("I17", f"tokens of {name(target['id'])} are {fences}, the highest is {target['fence']}")
            seen = self.facts["fences"].get(name(target["id"]), 0)
            if seen > target["fence"]:
                self.wrong("I17", f"the agent of {name(target['id'])} has seen {seen}, the database has {target['fence']}")

    def waves_wait(self):
        """I18: a wave opens only after the one before it passed."""
        for row in self.rows(
            "SELECT w.job_id, w.ordinal FROM waves w JOIN waves b ON b.job_id = w.job_id AND b.ordinal = w.ordinal - 1 "
            "WHERE w.opened_at IS NOT NULL AND (b.passed_at IS NULL OR b.passed_at > w.opened_at)"
        ):
            self.wrong("I18", f"wave {row['ordinal']} of {name(row['job_id'])} opened before the one before it passed")

    def run(self):
        for check in (
            self.one_at_a_time,
            self.one_job_per_project,
            self.moves_are_allowed,
            self.one_packet_each,
            self.every_report_is_taken,
            self.what_runs_is_proven,
            self.made_by_order,
            self.current_follows_history,
            self.numbers_have_no_gap,
            self.acknowledged_is_there,
            self.audit_is_whole,
            self.tokens_rise_by_one,
            self.waves_wait,
        ):
            check()
        return self.violations


def name(blob):
    return str(uuid.UUID(bytes=bytes(blob)))


def payload(envelope):
    return json.loads(base64.b64decode(json.loads(bytes(envelope))["payload"]))


def hash_of(row):
    """The hash of an audit event: SHA-256 of its canonical JSON (RFC 8785; all of it is ASCII keys, strings and nothing else)."""
    tenant = row["tenant_id"]
    entry = {key: row[key] for key in ("actor", "role", "action", "resource", "outcome", "reason", "request_id")}
    entry["tenant_id"] = None if tenant is None else name(tenant)
    event = {"seq": str(row["seq"]), "at": row["at"].replace("+00:00", "Z"), "entry": entry, "previous": row["previous"]}
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def moves(path):
    """(from, event, to) of a printed state machine; a dash is a move that changes no state."""
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if line.startswith("|")]
    events = cells_of(lines[0])[1:]
    allowed = set()
    for line in lines[2:]:
        cells = cells_of(line)
        before = re.sub(r"\*|\(.*\)", "", cells[0]).strip()
        for event, cell in zip(events, cells[1:]):
            after = re.sub(r"\(.*\)", "", cell).strip()
            if after == "–":
                allowed.add((before, event, before))
            elif after != "✗":
                allowed.add((before, event, after))
    return allowed


def cells_of(line):
    return [cell.strip() for cell in line.strip().split("|")[1:-1]]


def main():
    database, docs, facts = sys.argv[1:]
    with open(facts, encoding="utf-8") as file:
        violations = Checker(database, docs, json.load(file)).run()
    print("\n".join(violations))
    sys.exit(1 if violations else 0)


main()
