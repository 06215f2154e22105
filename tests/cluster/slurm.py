"""A real Slurm on this machine: accounting, controller, and two nodes that are machines of their own.

Each node has its own lock folder and machine id (in a mount namespace), and one core. `python -m tests.cluster.slurm
FOLDER` starts one to be tried by hand.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "unshare", "taskset")
LOCKS = Path("/tmp/unlearnbench-locks")
SECONDS = 30  # for each part to start
COMMON = """
AuthType=auth/munge
SlurmUser=root
"""
DATABASE = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
CONTROLLER = """
ClusterName=two
SlurmctldHost=localhost(127.0.0.1)
SlurmdUser=root
CredType=cred/munge
AuthInfo=cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ctld}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
MinJobAge=300
MailProg=/bin/true
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=8 RealMemory=16000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES LLN=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """Return why no Slurm can be started here; empty where it can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "starting a Slurm takes root on Linux"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return f"not installed: {', '.join(missing)} (.ci/install-debian installs them)"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        return "no mount namespace can be made here"
    return ""


class Slurm:
    """A running Slurm."""

    def __init__(self, folder):
        self.folder = folder.absolute()
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.environment["PATH"] += ":/usr/sbin"
        self._nodes = {}

    def start(self):
        for name in ("state", "log", "run", "spool/n1", "spool/n2", "db"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        self._start_munge()
        self._start_database()
        self("slurmdbd")
        self._await(lambda: self.ask("sacctmgr", "-n", "-i", "list", "cluster") is not None)
        self.ask("sacctmgr", "-i", "add", "cluster", "two")
        self("slurmctld", "-f", self.environment["SLURM_CONF"])
        for name in NODES:
            self.start_node(name)
        self._await(lambda: self.states() == dict.fromkeys(NODES, "idle"))
        return self

    def __call__(self, *command, **more):
        """Run a command; return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def ask(self, *command):
        """Run a command; return what it prints, None where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None

    def states(self):
        lines = (self.ask("sinfo", "-h", "-N", "-o", "%N %T") or "").splitlines()
        return dict(line.split() for line in lines)

    def jobs(self):
        """Return {job: (state, node)} of the queue."""
        lines = self("squeue", "-h", "-r", "-o", "%i|%T|%N").splitlines()
        return {job: (state, node) for job, state, node in (line.split("|") for line in lines)}

    def start_node(self, name):
        core = sorted(os.sched_getaffinity(0))[NODES.index(name) % len(os.sched_getaffinity(0))]
        locks, machine = self.folder / f"locks-{name}", self.folder / f"machine-{name}"
        for path in (LOCKS, locks):
            path.mkdir(exist_ok=True)
            path.chmod(0o1777)
        machine.write_text(f"{NODES.index(name):032d}\n")
        script = (
            f"mount --bind {locks} {LOCKS}; mount --bind {machine} /etc/machine-id; "
            f"exec taskset -c {core} slurmd -D -f {self.environment['SLURM_CONF']} -N {name}"
        )
        self._nodes[name] = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script], env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def kill_node(self, name):
        """Let a node die as if its power failed, and tell the controller, which would notice after minutes."""
        self._kill_all_of(self._nodes.pop(name))
        self("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")

    def _kill_all_of(self, node):
        """Kill every process in a node's namespace."""
        place = _namespace(node.pid)
        for process in psutil.process_iter():
            if place and _namespace(process.pid) == place:
                with suppress(psutil.Error):
                    process.kill()
        node.kill()
        node.wait()

    def stop(self):
        self.ask("scancel", "--me")
        for node in self._nodes.values():
            self._kill_all_of(node)
        for name in ("slurmctld", "slurmdbd", "db"):
            with suppress(OSError, ValueError, ProcessLookupError):
                os.kill(int((self.folder / "run" / f"{name}.pid").read_text()), signal.SIGKILL)

    def _write_configuration(self):
        ports = {name: _free_port() for name in ("dbd", "db", "ctld", "n1", "n2")}
        self._db_port = ports["db"]
        for name, text in {"slurmdbd.conf": DATABASE, "slurm.conf": CONTROLLER}.items():
            (self.folder / name).write_text(COMMON + text.format(folder=self.folder, **ports))
        (self.folder / "slurmdbd.conf").chmod(0o600)

    def _start_munge(self):
        if self.ask("munge", "-n") is None:
            self("install", "-d", "-o", "munge", "-g", "munge", "-m", "0755", "/run/munge")
            self("runuser", "-u", "munge", "--", "munged")

    def _start_database(self):
        data, socket_, pid = self.folder / "db", self.folder / "run/db.sock", self.folder / "run/db.pid"
        self(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        subprocess.Popen(
            [
                "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket_}",
                "--bind-address=127.0.0.1", f"--port={self._db_port}", f"--pid-file={pid}",
                "--innodb-buffer-pool-size=128M", "--innodb-lock-wait-timeout=900",
                "--innodb-flush-log-at-trx-commit=0",
            ],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        client = ["--no-defaults", "-S", str(socket_), "-uroot"]
        self._await(lambda: self.ask("mariadb-admin", *client, "ping") is not None)
        self(
            "mariadb", *client, "-e", "create database slurm_acct_db; create user slurm@127.0.0.1 identified by "
            "'slurm'; grant all on slurm_acct_db.* to slurm@127.0.0.1;",
        )  # fmt: skip

    def _await(self, ready):
        end = time.monotonic() + SECONDS
        while not ready():
            assert time.monotonic() < end, f"Slurm does not start: see {self.folder}/log"
            time.sleep(0.1)


def _namespace(pid):
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return ""


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    slurm = Slurm(Path(sys.argv[1]))
    try:
        slurm.start()
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}", flush=True)
        signal.pause()
    finally:
        slurm.stop()
