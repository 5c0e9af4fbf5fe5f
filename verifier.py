"""V(x, y): run one program against its tests in a sandbox and say whether it passed (Section 3.2, Table 11).

    with Verifier(workers=8) as verifier:
        verdicts = verifier.judge([{"code": "print(input())", "tests": [{"input": "1\n", "output": "1\n"}]}])
        future = verifier.submit(item)          # one at a time: a concurrent.futures.Future of a Verdict

    python verifier.py judge FILE.jsonl --workers 8        # one verdict a line, in the order of FILE
    python verifier.py doctor                              # which protections hold here: each is tried

An item has "code" (text, or null where none was found) and "tests" ([{"input", "output"}]). It may have
"fn_name" (the tests are then calls: input is a JSON list of arguments, output a JSON value), "time_limit"
(seconds a test), "memory_mb", "compare" ("lines" or "tokens"), "float_tolerance" and "want_outputs". A
program is accepted if each of its tests was run, ended normally (exit status 0) and printed or returned the
right thing; the first failing test ends it. One file, standard library alone, Linux on x86-64 or aarch64.

Who is who. Model code never runs in your process and is never forked from it:

    caller        your process: one thread a worker, which only sends items and receives verdicts
    supervisor    one process a worker: has the expected outputs, compares, watches time and memory
    zygote        a clean, warm interpreter inside the sandbox (a second one, with numpy, once it is needed):
                  inputs and outputs pass it by as file descriptors, expected outputs never enter the sandbox
    program       forked from the zygote for each program: gives up all it can, then compiles
    test          forked from the program process for each test: runs model code; all that it starts dies too

mode="strict" forks for every test. mode="batch" lets the program process itself run the tests of a *tame*
program, one after another: no fork, several times faster. What is tame is settled before anything runs, by
the names in the compiled code (class Tameness); all others are judged strictly, and so is the first test that
does not pass in company. Both modes give the same verdicts. A test finds the same hash seed and the same
state of random and numpy in every run; only a program that asks the system for entropy does not.

What protects, in layers. Each is tried at start, and `Verifier.report` says which hold:

    namespaces    user, mount, pid, net, ipc, uts, cgroup: no process and no network of the host; the root has
                  the standard library, numpy and their shared objects alone, read-only, and beside them a
                  scratch directory in memory that vanishes
    landlock      no other file, no TCP, no signal and no abstract socket out of the sandbox
    seccomp       a list of allowed system calls: no exec, no socket, no ptrace, no mount, nothing newer
    identity      a user id of the sandbox's own (needs root), no capabilities, no new privileges
    limits        Table 11 and below: each process by rlimits, all together by the supervisor, every 50 ms

    tier A  namespaces, seccomp                     tier B  (as root) identity, landlock, seccomp
    tier C  landlock, seccomp; your own user id     tier D  less: refused unless min_tier="D" asks for it

Not covered: bugs of the kernel (for truly hostile code put a virtual machine around it), covert channels from
one test of a program to its next (clocks, addresses, process numbers), kernel memory behind socket pairs and
mappings (up to 1 GiB a program, while it runs); in tiers B and C also that a file exists, and the size of the
scratch directory, which is on disk there, watched and not bounded; in tier C the number of processes,
likewise; without root, up to 20 MiB in each of 64 processes beyond the limit on all memory, and what they
share counts for each. And correctness on the given tests is all that is looked at."""

from __future__ import annotations

import sys

if sys.argv[1:2] in (["--zygote"], ["--supervisor"]) and sys.version_info < (3, 11):
    del sys.path[0]     # this folder: its files could shadow the standard library (later: PYTHONSAFEPATH)

import atexit
import builtins
import contextlib
import gc
import json
import os
import signal
import struct
import threading
import time
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from os import _exit
from types import ModuleType

# ----------------------------------------------------------------------------------------------------- limits

TEST_SECONDS = 10.0         # wall clock of one test (Table 11); an item's "time_limit" overrides it
PROGRAM_SECONDS = 120.0     # all tests of one program together
PATIENCE = 3                # times PROGRAM_SECONDS: what a busy machine takes is given back, up to this
MEMORY_MB = 256             # address space of each process (Table 11); an item's "memory_mb" overrides it
TOTAL_MEMORY_MB = 384       # resident, of a program's processes together: 64 times 256 MiB would be 16 GiB
PROCESSES = 64              # at a time, of one program (Table 11)
OUTPUT_MB = 8               # of a test and of any file; or 1 MiB and twice the expected output, if more
SCRATCH_MB = 16             # in at most SCRATCH_FILES files
SCRATCH_FILES = 1024
OPEN_FILES = 64
STACK_MB = 64
WATCH_SECONDS = 0.05        # how often the supervisor looks at a running program
TESTS_AHEAD = 4             # given to the program process in advance, so that it never waits

LAYERS = ("namespaces", "landlock", "seccomp")
TIERS = "ABCD"

# supervisor -> zygote. "B": begin a program, with flags, address space, file size, CPU seconds, function
# name, and the files of its code and its socket. "K": kill it; the answer is "D" with its wait status, when
# the slot is clean again.
BEGIN = struct.Struct("<BQQQ")
BATCH, CALL = 1, 2
# supervisor -> program: for each test the files of input, result and error output. Back: "T" with wait
# status, seconds, CPU seconds of the program process so far, and flags. "C" with a message: no compiling.
REPLY = struct.Struct("<ciddB")
TOGETHER, SPENT = 1, 2      # tests share the program process; it ends with this test
UNCONFINED = 125            # exit status of a program process that could not be confined

# Descriptors: a program's socket to the supervisor (in a strict call the result), Landlock's ruleset, and the
# two of Zygote.find_libraries.
TALK, RULES, STDLIB, SITE = 3, 40, 50, 51


# ---------------------------------------------------------------------- inside the sandbox: the kernel's part

# What Python, numpy, threads, multiprocessing (fork) and asyncio use. Left out: execve, socket, setsockopt
# (megabytes of kernel memory behind each descriptor), bind, connect, sendmsg (its address cannot be read),
# ptrace, process_vm_*, mount and its kin, unshare, setns, set*id, capset, keyctl, bpf, perf, io_uring,
# memfd_create, userfaultfd, System V and POSIX queues, mlock, inotify, xattr, mknod, setpriority, pidfd_*,
# seccomp, landlock_*; and clone3, for which glibc then takes clone, whose flags a filter can read. What is
# not listed is answered with ENOSYS.
ALLOWED_CALLS = {
    "x86_64": "0-28 32-40 44-45 47-48 51-53 55-58 60-63 72-91 95-100 102 104 107-108 110-111 115 118 120-121 "
              "124 127-128 130-132 137-138 140 143 145-147 157-158 160 186 200-204 213 217-219 221-226 "
              "228-235 247 257-258 262-271 273-274 280-281 284-285 290-293 295-296 302 309 316 318 324 "
              "326-328 332 334 436 439 441 449 452",
    "aarch64": "17 19-25 29 32 34-38 43-50 52-53 56-57 59 61-73 78-80 82-83 88 93-96 98-103 107-111 "
               "113-115 120-126 128-137 139 141 148 150 153 155-156 158 160 163-169 172-179 199 204-207 "
               "209-210 212 214-216 220 222-223 226-227 232-233 260-261 276 278 283 285-287 291 293 436 439 "
               "441 449 452",
}
CALLS = {
    "x86_64": dict(arch=0xC000003E, seccomp=317, clone=56, open=2, openat=257, sendto=44, socketpair=53,
                   fcntl=72, ioctl=16, prctl=157, prlimit64=302, sched_setaffinity=203),
    "aarch64": dict(arch=0xC00000B7, seccomp=277, clone=220, openat=56, sendto=206, socketpair=199,
                    fcntl=25, ioctl=29, prctl=167, prlimit64=261, sched_setaffinity=122),
}
# Those with an argument that is looked at: its number, the bits that count, what they may be.
CREATING = (0, 1, 2, 3, 0x201, 0x202)       # O_TRUNC only to write: Landlock before Linux 6.2 does not ask
ARGUMENTS = {
    "clone": (0, 0x7E020000, (0,)),         # no CLONE_NEW*
    "open": (1, 0x203, CREATING), "openat": (2, 0x203, CREATING),
    "sendto": (5, -1, (0,)),                # no address: sockets of the host have paths
    "socketpair": (0, -1, (1,)),            # AF_UNIX, which asyncio needs
    "fcntl": (1, -1, (*range(8), 1030)),    # duplicates, flags, locks; not F_SETOWN, which sends signals
    "ioctl": (1, -1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),     # is it a terminal, how wide, ...
    "prctl": (0, -1, (1, 2, 3, 15, 16)),    # death signal, name; not dumpable again: cores may go to the host
    "prlimit64": (0, -1, (0,)), "sched_setaffinity": (0, -1, (0,)),         # of oneself
}
SESSIONS = {"x86_64": {109, 112}, "aarch64": {154, 157}}        # setpgid, setsid
SIGNALS = {"x86_64": {62, 200, 234}, "aarch64": {129, 130, 131}}        # kill, tkill, tgkill
# truncate, chmod, utime and their kin: nothing but an image keeps them from your files, Landlock does not
METADATA = {"x86_64": {76, 90, 91, 132, 235, 268, 280, 452}, "aarch64": {45, 52, 53, 88, 452}}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, MOUNT_SETATTR = 444, 445, 446, 442      # the same on both


class Kernel:
    """libc and system calls that the standard library lacks. Functions and structures are made before the
    first fork: the first use of one through ctypes costs 150 us of page faults, in each child anew."""

    def __init__(self):
        import ctypes
        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        # os.fork() runs hooks of random and threading: a child then costs 740 us, not 277
        self.fork = ctypes.PyDLL(None).fork

    def call(self, name: str, *arguments, what: str = "") -> int:
        result = getattr(self.libc, name)(*arguments)
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, f"{what or name}: {os.strerror(number)}")
        return result

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        texts = [text and text.encode() for text in (source, target, kind, data)]
        self.call("mount", *texts[:3], self.ctypes.c_ulong(flags), texts[3], what=f"mount {target}")

    def prctl(self, option: int, value: int) -> None:
        self.call("prctl", option, value, 0, 0, 0)


PDEATHSIG, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38     # prctl


def seccomp_filter(machine: str, isolated: bool, signals_stay: bool) -> bytes:
    """The filter as classic BPF: a few calls by an argument, the others by binary search over intervals."""
    number, allowed = CALLS[machine], set()
    for interval in ALLOWED_CALLS[machine].split():
        first, _, last = interval.partition("-")
        allowed.update(range(int(first), int(last or first) + 1))
    if isolated:
        allowed |= SESSIONS[machine]        # elsewhere, what is killed is the process group
    else:
        allowed -= METADATA[machine] if signals_stay else METADATA[machine] | SIGNALS[machine]
    load, mask, ret, equal, at_least = 0x20, 0x54, 0x06, 0x15, 0x35
    allow, eperm, enosys, kill = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38, 0x80000000
    code: list[list[int]] = []

    def emit(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append([operation, if_true, if_false, value])

    emit(load, 4), emit(equal, number["arch"], 1, 0), emit(ret, kill), emit(load, 0)
    for name, (argument, bits, values) in ARGUMENTS.items():
        if name in number:
            emit(equal, number[name], 0, len(values) + 4)
            emit(load, 16 + 8 * argument), emit(mask, bits & 0xFFFFFFFF)
            for n, value in enumerate(values):
                emit(equal, value, len(values) - n, 0)
            emit(ret, eperm), emit(ret, allow)
    starts = [0] + [n for n in range(1, max(allowed) + 2) if (n in allowed) != (n - 1 in allowed)]

    def search(low: int, high: int) -> None:
        if high - low == 1:
            return emit(ret, allow if starts[low] in allowed else enosys)
        middle = (low + high) // 2
        emit(at_least, starts[middle])
        jump = len(code)
        search(low, middle)
        code[jump - 1][1] = len(code) - jump
        search(middle, high)

    search(0, len(starts))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
MAKE_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11


def landlock_rules(kernel: Kernel, abi: int, readable: list[str], listable: list[str], scratch: str) -> int:
    """A ruleset: `readable` trees, names in `listable` folders, all but execution below `scratch`."""
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    handled = struct.pack("<QQQ", every, 3, 3)      # files; TCP; signals and abstract sockets
    handled = handled[:24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = kernel.call("syscall", LANDLOCK_CREATE, handled, len(handled), 0, what="landlock")
    rules = [(path, READ | LIST) for path in readable] + [(path, LIST) for path in listable]
    rules += [("/dev/" + name, READ | WRITE) for name in ("null", "zero", "full")]
    rules += [("/dev/" + name, READ) for name in ("random", "urandom")]
    rules += [(scratch, every & ~EXECUTE & ~MAKE_DEVICES_AND_SOCKETS)]
    for path, rights in rules:
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= EXECUTE | WRITE | READ | TRUNCATE | IOCTL
        rule = struct.pack("<Qi", rights & every, beneath)
        kernel.call("syscall", LANDLOCK_ADD, ruleset, 1, rule, 0, what=f"landlock_add_rule {path}")
        os.close(beneath)
    return ruleset


NEW_USER, NEW_OTHERS = 0x10000000, 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME = 1, 2, 4, 8, 32, 1024
BIND, REC, PRIVATE = 4096, 16384, 1 << 18
DETACH, AT_RECURSIVE = 2, 0x8000


def in_image(path: str) -> str:
    """Where a file of the host stands in the image: at its own path, unless that is the scratch's."""
    return "/host" + path if path.startswith("/tmp/") else path


def build_image(kernel: Kernel, config: dict) -> None:
    """Change the root to an empty file system with the standard library and config["readable"] bound into it,
    read-only. No directory is made on the host, so none can be left behind."""
    hidden = NOSUID | NODEV
    kernel.mount("none", "/", None, REC | PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", hidden, "size=1m,mode=755")
    os.mkdir("/tmp/new"), os.mkdir("/tmp/old")
    kernel.mount("/tmp/new", "/tmp/new", None, BIND)
    kernel.call("pivot_root", b"/tmp", b"/tmp/old")     # so that what is under /tmp can be bound, too
    os.chdir("/")

    def bind(path: str) -> None:
        source, target = "/old" + path, "/new" + in_image(path)
        os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(source):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(source, target, None, BIND | REC)

    def make_read_only(path: str) -> None:      # mount_setattr adds flags: it never trips over locked ones
        target = ("/new" + in_image(path)).encode()
        attributes = struct.pack("<QQQQ", RDONLY | hidden, 0, 0, 0)
        kernel.call("syscall", MOUNT_SETATTR, -100, target, AT_RECURSIVE, attributes, len(attributes),
                    what=f"mount_setattr {path}")

    for link, target in config["links"]:        # /lib -> usr/lib
        os.makedirs("/new/" + target.lstrip("/"), exist_ok=True)
        os.symlink(target, "/new" + link)
    bind(config["stdlib"])
    for path in config["third_party"]:          # the folders of other packages that lie inside it
        kernel.mount("tmpfs", "/new" + in_image(path), "tmpfs", hidden, "size=64k,mode=755")
    for path in config["readable"]:
        bind(path)
    for path in [config["stdlib"], *config["readable"]]:
        make_read_only(path)
    for link, target in config["aliases"]:      # libz.so.1 -> libz.so.1.3
        os.symlink(in_image(target), "/new" + in_image(link))
    for name in ("null", "zero", "full", "random", "urandom"):
        bind("/dev/" + name)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", "/new/dev/" + name)
    os.makedirs("/new/box/tmp"), os.mkdir("/new/proc")
    os.symlink("/box/tmp", "/new/tmp"), os.symlink("/box/tmp", "/new/dev/shm")
    mount_scratch(kernel, config, "/new/box/tmp")
    try:
        kernel.mount("proc", "/new/proc", "proc", hidden | NOEXEC, "subset=pid,hidepid=2")
    except OSError:     # refused where the host's is masked, as in containers: there is no /dev/stdin then
        config["no_proc"] = True
    kernel.call("umount2", b"/old", DETACH)
    os.chdir("/new")
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", DETACH)
    os.chdir("/")
    kernel.mount("none", "/", None, BIND | REMOUNT | RDONLY | hidden)
    kernel.call("sethostname", b"sandbox", 7)


def mount_scratch(kernel: Kernel, config: dict, where: str) -> None:
    kernel.mount("tmpfs", where, "tmpfs", NOSUID | NODEV | NOEXEC | NOATIME,      # or who read it would show
                 f"size={config['scratch_mb']}m,nr_inodes={SCRATCH_FILES},mode=1777")


def empty_directory(path: str) -> None:
    """Remove all that is in `path`, whatever its depth and mode, following no link. It steps in and out of
    folders by descriptor: a tree 1,500 deep, on which shutil.rmtree fails, needs neither recursion nor long
    paths. No process that could move things about may be left."""
    here, entered = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), []
    while True:
        full = None
        for entry in list(os.scandir(here)):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=here)
                continue
            os.chmod(entry.name, 0o700, dir_fd=here)
            try:
                os.rmdir(entry.name, dir_fd=here)
            except OSError:
                full = entry.name
        if full is None and not entered:
            return os.close(here)
        there = os.open(full or "..", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        os.close(here)
        here = there
        if full is None:
            os.rmdir(entered.pop(), dir_fd=here)
        else:
            entered.append(full)


def family(root: int) -> list[tuple[int, int, float]]:
    """The living descendants of a process, parents first: (pid, resident bytes, CPU seconds). All of /proc is
    read, since many kernels are built without lists of children; 15 us a process."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), 1 / os.sysconf("SC_CLK_TCK")
    children: dict[int, list[tuple[int, int, float]]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb", 0) as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:     # it has ended
            continue
        if fields[0] != b"Z":
            process = int(name), int(fields[21]) * page, (int(fields[11]) + int(fields[12])) * tick
            children.setdefault(int(fields[1]), []).append(process)
    found = list(children.get(root, ()))
    for process in found:       # grows while it is walked
        found.extend(children.get(process[0], ()))
    return found


def reset_signals() -> None:
    """Nothing that the caller ignores or blocks: where SIGCHLD is ignored, there is no exit status."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


# ----------------------------------------------------------------------------- inside the sandbox: the zygote

class Zygote:
    """The warm interpreter. All that runs in it is ours."""

    def __init__(self, control: int):
        import _socket
        self.control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)
        self.config = config = json.loads(self.control.recv(1 << 20))
        self.report = {layer: "off" for layer in LAYERS}
        self.kernel = Kernel()
        self.test_uid: int | None = None        # the user id that programs change to, as it is called in here
        os.environ.clear()
        os.environ.update(HOME="/tmp", PATH="/nonexistent", LC_ALL="C.UTF-8", OPENBLAS_NUM_THREADS="1",
                          OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")     # OpenBLAS with two aborts in 256 MiB
        os.umask(0o022)
        reset_signals()     # SIGINT as well: pid 1 is immune to what it does not handle
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")      # if the machine runs out of memory, not the caller is to go
        self.isolated = "namespaces" in config["layers"]
        if self.isolated:
            self.enter_namespaces()
            build_image(self.kernel, config)
            for key in ("stdlib", "site"):
                config[key] = config[key] and in_image(config[key])
            config["readable"] = [in_image(path) for path in config["readable"]]
            self.scratch, scratch_rule = "/tmp", "/box"     # the folder above outlives the mounts
            self.report["namespaces"] = "active" + (", but no /proc" if config.get("no_proc") else "")
        else:
            self.scratch = scratch_rule = config["scratch"]
            os.mkdir(self.scratch, 0o700)
            if os.geteuid() == 0:
                self.test_uid = config["uid"]
                os.chown(self.scratch, self.test_uid, self.test_uid)
        self.find_libraries()
        self.warm_up()
        self.prepare_landlock(scratch_rule)
        self.prepare_seccomp()
        self.prepare_identity()
        self.set_limits()
        # May a program process end what its tests leave by kill(-1)? Only where that cannot reach the caller.
        self.can_sweep = self.isolated or self.test_uid is not None or self.scoped
        self.clean = self.scratch_state()

    def enter_namespaces(self) -> None:
        root, uid, gid = os.geteuid() == 0, os.geteuid(), os.getegid()
        try:
            self.kernel.call("unshare", NEW_USER | NEW_OTHERS)
        except OSError:
            if not root:
                raise
            self.kernel.call("unshare", NEW_OTHERS)     # real root, where user namespaces are switched off
            self.test_uid = self.config["uid"]
        else:
            if root:    # RLIMIT_NPROC never binds root, so that programs need a second user id,
                self.control.send(b"M" + struct.pack("i", os.getpid()))     # which the supervisor can map
                self.test_uid = 1 if self.control.recv(1) == b"2" else None
            else:
                maps = dict(setgroups="deny", uid_map=f"1000 {uid} 1", gid_map=f"1000 {gid} 1")
                for name, line in maps.items():
                    with open("/proc/self/" + name, "w") as file:
                        file.write(line)
        child = os.fork()       # pid 1 of the namespace: with it all others in there die
        if child:
            self.control.close()
            os.waitpid(child, 0)
            os._exit(1)
        self.kernel.prctl(PDEATHSIG, 9)

    def find_libraries(self) -> None:
        """sys.path: the standard library, and the folder of numpy. Where the test's user id cannot reach them
        (a Python below /root), by two descriptors that stay open in every process."""
        stdlib, site = self.config["stdlib"], self.config["site"]
        self.keeps_descriptors = False
        if not self.isolated and self.test_uid is not None:
            child = os.fork()
            if child == 0:
                os.setresuid(self.test_uid, self.test_uid, self.test_uid)
                os._exit(0 if os.access(stdlib + "/os.py", os.R_OK) else 1)
            self.keeps_descriptors = os.waitpid(child, 0)[1] != 0
        if self.keeps_descriptors:
            for path, number in ((stdlib, STDLIB), (site, SITE)):
                if path:
                    folder = os.open(path, os.O_PATH | os.O_DIRECTORY)
                    os.dup2(folder, number)
                    os.close(folder)
            for module in list(sys.modules.values()):
                for n, place in enumerate(getattr(module, "__path__", ())):
                    module.__path__[n] = place.replace(stdlib, f"/proc/self/fd/{STDLIB}")
            stdlib, site = f"/proc/self/fd/{STDLIB}", site and f"/proc/self/fd/{SITE}"
        sys.path[:] = [stdlib, stdlib + "/lib-dynload"] + [site] * bool(site)
        sys.path_importer_cache.clear()

    def warm_up(self) -> None:
        """Import what programs use most. More would slow every fork: a module is pages to map and to copy."""
        import __future__, array, bisect, cmath, collections, copy, datetime, functools     # noqa: E401, F401
        import heapq, itertools, math, operator, queue, random, re, string, typing      # noqa: E401, F401
        from _sitebuiltins import Quitter
        builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")     # else of site
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)       # no judge has Python's limit of 4,300 digits
        self.numpy_random = None
        if self.config["numpy"]:
            import numpy, numpy.fft, numpy.linalg, numpy.random         # noqa: E401
            numpy.random.seed(0)
            self.numpy_random, self.numpy_state = numpy.random, numpy.random.get_state()
            entropy = sys.modules["numpy.random.bit_generator"]
            if hasattr(entropy, "randbits"):        # a default_rng() without a seed starts the same as well
                entropy.randbits = lambda bits: 0
        random.seed(0)
        self.random_state, self.recursion_limit = random.getstate(), sys.getrecursionlimit()
        self.typing_caches = getattr(typing, "_cleanups", [])
        self.call_names, self.tameness = names_for_calls(), Tameness()
        sys.argv[:] = ["main.py"]
        open_standard_streams()
        sys.path_importer_cache.clear()
        compile("0", "", "eval")        # makes the types of syntax trees: 1.3 ms that each program would pay
        gc.collect()
        gc.freeze()

    def prepare_landlock(self, scratch: str) -> None:
        self.rules, self.scoped = -1, False
        if "landlock" not in self.config["layers"]:
            return
        stdlib, site = self.config["stdlib"], self.config["site"]
        if self.isolated:
            readable, listable = [stdlib], ["/"]
        else:       # no rule takes the other packages out of a tree that it allows, so the entries are named
            readable = [e.path for e in os.scandir(stdlib) if e.path not in self.config["third_party"]]
            listable = [stdlib] + [site] * bool(site)
        try:
            abi = self.kernel.call("syscall", LANDLOCK_CREATE, None, 0, 1, what="landlock")
            rules = landlock_rules(self.kernel, abi, readable + self.config["readable"], listable, scratch)
        except OSError as error:
            self.report["landlock"] = f"refused: {error.strerror}"
            return
        os.dup2(rules, RULES)
        os.close(rules)
        self.rules, self.scoped = RULES, abi >= 6
        self.report["landlock"] = "active" if self.scoped else "active, but does not keep signals in"

    def prepare_seccomp(self) -> None:
        self.install_filter = lambda: 0
        machine = os.uname().machine
        if "seccomp" not in self.config["layers"]:
            return
        if machine not in CALLS:
            self.report["seccomp"] = f"refused: no list of calls for {machine}"
            return
        ctypes, call, number = self.kernel.ctypes, self.kernel.call, CALLS[machine]["seccomp"]
        code = seccomp_filter(machine, self.isolated, self.scoped or self.test_uid is not None)
        buffer = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
        program = ctypes.create_string_buffer(header, len(header))

        def install(keep=buffer):       # flag 4: or kernels before 5.16 slow every filtered process down
            call("syscall", number, 1, 4, program, what="seccomp")

        child = os.fork()
        if child == 0:
            try:
                self.kernel.prctl(NO_NEW_PRIVS, 1)
                install()
            except OSError as error:
                os._exit(error.errno)
            os._exit(0)
        refused = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if refused:
            self.report["seccomp"] = f"refused: {os.strerror(refused)}"
        else:
            self.report["seccomp"], self.install_filter = "active", install

    def prepare_identity(self) -> None:
        """How a program process gives up its user id, or at least its capabilities."""
        kernel, uid = self.kernel, self.test_uid
        header = kernel.ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0), 8)
        nothing = kernel.ctypes.create_string_buffer(24)
        if uid is not None:
            os.setgroups([])
            self.drop = lambda: (os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid))
            self.report["identity"] = "active"
        elif self.isolated:
            self.drop = lambda: kernel.call("capset", header, nothing)
            self.report["identity"] = "your user id, in a namespace where it owns nothing"
        else:
            self.drop = lambda: None
            self.report["identity"] = "your user id"

    def set_limits(self) -> None:
        """Limits that all programs share; those that depend on the item are set in the program process."""
        import resource
        self.kernel.prctl(DUMPABLE, 0)      # no ptrace, no /proc/1/mem
        self.kernel.prctl(SUBREAPER, 1)     # orphans come to us, none is lost
        processes = self.config["processes"] + (1 if self.test_uid is not None else 3)      # and our own
        if not self.isolated and self.test_uid is None:     # all tasks of the user count; see next_reply
            processes += self.config["user_tasks"] + 256
        for name, value in dict(CORE=0, NOFILE=OPEN_FILES, STACK=STACK_MB << 20, MEMLOCK=0, MSGQUEUE=0,
                                SIGPENDING=256, NPROC=processes).items():
            limit = getattr(resource, "RLIMIT_" + name)
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, hard if name == "STACK" else value))      # programs raise it

    def scratch_state(self) -> tuple:
        now = os.stat(self.scratch)     # any change of the directory moves ctime, which cannot be set back
        return now.st_mode, now.st_uid, now.st_nlink, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    def close_from(self, first: int) -> None:
        if self.keeps_descriptors:
            os.closerange(first, STDLIB)
            first = SITE + 1
        os.closerange(first, 1 << 16)

    def serve(self) -> None:
        """Begin and end programs, as the supervisor says, until it is gone."""
        import _socket
        room, child = _socket.CMSG_SPACE(8), 0
        self.control.send(b"R" + json.dumps(self.report).encode())
        while True:
            message, ancillary, _, _ = self.control.recvmsg(4096, room)
            if message[:1] == b"B":
                descriptors = struct.unpack("2i", ancillary[0][2])
                child = self.kernel.fork()
                if child == 0:
                    os.setpgid(0, 0)
                    try:
                        program = Program(self, message[1:], *descriptors)
                        try:
                            program.serve()
                        except MemoryError:     # at the program's own limit
                            _exit(1)
                    except BaseException as error:
                        os.write(2, explain(error))
                    finally:
                        _exit(UNCONFINED)
                for descriptor in descriptors:
                    os.close(descriptor)
                if child < 0:
                    raise OSError("the sandbox cannot fork")
            else:
                status = self.end(child) if child else 0
                child = 0
                if not message:
                    if not self.isolated:
                        os.rmdir(self.scratch)
                    os._exit(0)
                self.control.send(b"D" + struct.pack("i", status))

    def end(self, program: int) -> int:
        """Kill and reap what is left of a program, empty the scratch; the status of its first process."""
        status = 0
        while True:
            if self.isolated:
                victims = [-1]
            elif self.report["seccomp"] == "active":
                victims = [-program, program]       # leaving the process group is not an allowed call
            else:
                victims = [pid for pid, _, _ in family(os.getpid())]
            for victim in victims:
                try:
                    os.kill(victim, 9)
                except ProcessLookupError:
                    pass
            try:
                pid, ended = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            if pid == program:
                status = ended
        if self.scratch_state() != self.clean:
            if self.isolated:
                self.kernel.call("umount2", b"/box/tmp", DETACH)
                mount_scratch(self.kernel, self.config, "/box/tmp")
            else:
                os.chmod(self.scratch, 0o700)
                empty_directory(self.scratch)
            self.clean = self.scratch_state()
        return status


def names_for_calls() -> dict:
    """What solutions in the style of LeetCode use without importing it. Builtins stay: pow is not math's."""
    starred = ("typing string random operator math itertools functools copy bisect heapq datetime "
               "collections").split()
    names: dict = {}
    for module in map(sys.modules.get, starred):
        for name in getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]:
            names[name] = getattr(module, name)
    names.update((name, sys.modules[name]) for name in [*starred, "re", "sys"] if name != "datetime")
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


# ---------------------------------------------------------------- inside the sandbox: which programs are tame

TAME_MODULES = frozenset("""array bisect cmath collections collections.abc copy functools heapq itertools math
numpy numpy.fft numpy.linalg numpy.random operator queue random re string sys time typing __future__
""".split())
SAFE_IN_SYS = frozenset("""stdin stdout stderr exit maxsize setrecursionlimit getrecursionlimit version
version_info byteorder float_info int_info getsizeof maxunicode hexversion platform""".split())
IMPORTED_AHEAD = frozenset("collections.abc dataclasses decimal enum fractions json statistics".split())
# Ways to code, namespaces, frames, files, attributes by name and raw memory; settings that a test would leave
# behind.
WILD_NAMES = frozenset("""exec eval open globals locals vars getattr setattr delattr type breakpoint help
attrgetter methodcaller update_wrapper wraps total_ordering singledispatch register overload get_type_hints
ForwardRef final no_type_check no_type_check_decorator override runtime_checkable dataclass_transform
Formatter get_field tb_frame tb_next with_traceback f_back f_globals f_locals f_builtins f_code gi_frame
gi_code cr_frame cr_code ag_frame ag_code raw detach process_time process_time_ns thread_time thread_time_ns
clock_gettime clock_gettime_ns load save savez savez_compressed loadtxt savetxt genfromtxt recfromtxt
recfromcsv fromregex fromfile tofile dump memmap DataSource ctypes cffi finfo errstate seterr seterrcall
seterrobj setbufsize printoptions set_printoptions set_string_function set_numeric_ops set_bit_generator
add_newdoc add_docstring add_newdoc_ufunc""".split())
TAME_DUNDERS = frozenset(f"__{name}__" for name in """name main module qualname doc annotations annotate
annotate_func conditional_annotations static_attributes firstlineno classcell classdict classdictcell
type_params slots init new repr str bool len iter next reversed contains getitem setitem
delitem missing call enter exit lt le gt ge eq ne add radd iadd sub rsub isub mul rmul imul truediv rtruediv
itruediv floordiv rfloordiv ifloordiv mod rmod imod pow rpow ipow matmul rmatmul and rand iand or ror ior xor
rxor ixor lshift rlshift rshift rrshift neg pos abs invert int float index round floor ceil trunc divmod
format copy deepcopy future""".split())


IMMUTABLE, MANAGED_DICT = 1 << 8, 1 << 4        # Py_TPFLAGS_..., of types


class Tameness:
    """May the tests of a program share one process? If its code mentions no name by which state could outlive
    a test, or the loop around it be reached: only listed modules, none of their private names, submodules and
    containers, nothing like eval, open or __dict__, no attribute deleted, none stored under a name that the
    modules have, none like __enter__ read. (To compute a name takes a wild one.) A new attribute on something
    shared is seen afterwards, by counting. Should a program slip through, it could carry what it saw from one
    of its own tests to the next, and no further."""

    def __init__(self):
        import opcode
        self.wild = set(WILD_NAMES) | (vars(sys).keys() - SAFE_IN_SYS)
        self.variables: set[str] = set()        # typing's: from 3.12 on they have attributes, but no __dict__
        self.modules = TAME_MODULES & sys.modules.keys()        # of no other are the names known
        waiting = [sys.modules[name] for name in self.modules]
        for module in waiting:      # numpy imports numpy.testing where it is first mentioned
            for place in getattr(module, "__path__", ()):
                names = {entry.partition(".")[0] for entry in os.listdir(place)}
                self.wild |= {name for name in names if f"{module.__name__}.{name}" not in TAME_MODULES}
        shared = {id(module): module for module in waiting}     # and what is in them: classes, functions, ...
        while waiting:
            for name, value in list(vars(waiting.pop()).items()):
                private = name[0] == "_" and name[1:] and name not in TAME_DUNDERS
                other = isinstance(value, ModuleType) and value.__name__ not in TAME_MODULES
                if private or other or isinstance(value, (list, dict, set)):
                    self.wild.add(name)
                elif hasattr(value, "__dict__") and id(value) not in shared:
                    shared[id(value)] = value
                    waiting.append(value)
                elif not hasattr(value, "__dict__") and type(value).__flags__ & MANAGED_DICT:
                    self.variables.add(name)
        self.wild -= TAME_DUNDERS
        self.shared = [vars(owner) for owner in shared.values()
                       if not (isinstance(owner, type) and owner.__flags__ & IMMUTABLE)]
        self.taken = {name for entries in self.shared for name in entries}
        self.taken -= {"stdin", "stdout", "stderr"}     # made anew for each test
        self.store, self.delete = opcode.opmap["STORE_ATTR"], opcode.opmap["DELETE_ATTR"]
        self.load_module, self.extended = opcode.opmap["IMPORT_NAME"], opcode.opmap["EXTENDED_ARG"]
        self.match_class = opcode.opmap.get("MATCH_CLASS")
        new = sys.version_info >= (3, 12)       # the lowest bits of the argument are flags
        shifts = dict(LOAD_ATTR=1 if new else 0, LOAD_METHOD=0, LOAD_SUPER_ATTR=2)
        self.loads = {opcode.opmap[name]: shift for name, shift in shifts.items() if name in opcode.opmap}

    def read(self, code) -> tuple[bool, set[str], bool]:
        """(tame, the modules it imports, whether it stores attributes)"""
        names: set[str] = set()
        modules: set[str] = set()
        stored: set[str] = set()
        loaded: set[str] = set()        # of names like __init__, which classes may well define
        deletes, stack = False, [code]
        while stack:
            code = stack.pop()
            stack.extend(constant for constant in code.co_consts if type(constant) is type(code))
            names.update(code.co_names)
            operations = code.co_code[::2]
            deletes |= self.delete in operations
            special = {name for name in code.co_names if name[:2] == "__"} - {"__name__"}
            if self.match_class in operations:      # case C(name=x) reads an attribute as well
                names.update(name for constant in code.co_consts if type(constant) is tuple
                             for name in constant if type(name) is str)
            if special or self.store in operations or self.load_module in operations:
                high = 0
                for operation, argument in zip(operations, code.co_code[1::2], strict=True):
                    argument |= high
                    if operation == self.store:
                        stored.add(code.co_names[argument])
                    elif operation == self.load_module:
                        modules.add(code.co_names[argument])
                    elif operation in self.loads:
                        loaded |= special & {code.co_names[argument >> self.loads[operation]]}
                    high = argument << 8 if operation == self.extended else 0
        tame = (not deletes and modules <= self.modules and self.wild.isdisjoint(names)
                and self.taken.isdisjoint(stored) and not loaded
                and not (stored and names & self.variables and names & {"typing", "AnyStr"})
                and all(name[:2] != "__" or name in TAME_DUNDERS for name in names))
        return tame, modules, bool(stored)

    def entries(self) -> int:
        return sum(map(len, self.shared))


# ----------------------------------------------------------------- inside the sandbox: one program, its tests

class Program:
    """The process of one program. In strict mode model code runs in its children only."""

    def __init__(self, zygote: Zygote, message: bytes, code: int, talk: int):
        import _socket
        import resource
        self.zygote, kernel = zygote, zygote.kernel
        flags, memory, file_size, cpu_seconds = BEGIN.unpack_from(message)
        self.function = message[BEGIN.size:].decode() if flags & CALL else None
        source = os.pread(code, os.fstat(code).st_size, 0)
        os.dup2(talk, TALK)
        os.chdir(zygote.scratch)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        zygote.drop()
        kernel.prctl(NO_NEW_PRIVS, 1)
        kernel.prctl(DUMPABLE, 0)
        kernel.prctl(SUBREAPER, 1)
        if zygote.rules >= 0:
            kernel.call("syscall", LANDLOCK_RESTRICT, zygote.rules, 0, what="landlock_restrict_self")
        zygote.close_from(TALK + 1)
        zygote.install_filter()
        self.talk = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, TALK)
        try:        # from here on it is the program that fails
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            self.code = compile(source, "main.py", "exec", dont_inherit=True)
            tame, modules, stores = zygote.tameness.read(self.code)
            for module in modules & IMPORTED_AHEAD:     # here once, not in each test
                __import__(module)
        except BaseException as error:
            self.talk.send(b"C" + explain(error))
            _exit(0)
        self.together = bool(flags & BATCH) and tame
        self.draws = self.function is not None or not {"random", "numpy"}.isdisjoint(
            module.partition(".")[0] for module in modules)
        self.entries = zygote.tameness.entries() if self.together and stores else None
        gc.freeze()     # or the first collection in a test would touch, and so copy, all that compiling left

    def serve(self) -> None:
        import _socket
        room, clock = _socket.CMSG_SPACE(12), time.perf_counter
        while True:
            message, ancillary, _, _ = self.talk.recvmsg(8, room)
            if not message:
                _exit(0)
            files = struct.unpack("3i", ancillary[0][2])
            start = clock()
            if self.together:
                status = self.test(*files) << 8     # as a wait status
                seconds, fit = clock() - start, self.restore()
            else:
                status = self.test_in_child(*files)
                seconds = clock() - start
                fit = self.zygote.can_sweep and self.zygote.scratch_state() == self.zygote.clean
            ends = status != 0 or not fit
            flags = TOGETHER * self.together | SPENT * ends
            self.talk.send(REPLY.pack(b"T", status, seconds, time.process_time(), flags))
            if ends:
                _exit(0)

    def test_in_child(self, *files: int) -> int:
        child = self.zygote.kernel.fork()
        if child < 0:
            raise OSError("no process for a test")
        if child == 0:
            status = 1
            try:
                status = self.test(*files)
            finally:
                _exit(status)
        for descriptor in files:
            os.close(descriptor)
        status = os.waitpid(child, 0)[1]
        while self.zygote.can_sweep:        # nothing outlives a test; elsewhere the zygote sees to that
            try:
                os.kill(-1, 9)
            except ProcessLookupError:
                pass
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        return status

    def restore(self) -> bool:
        """What a tame program may have changed, for its next test; False where that is not to be had."""
        try:
            os.closerange(TALK + 1, 16)
            open_standard_streams()
            sys.setrecursionlimit(self.zygote.recursion_limit)
            for clear in self.zygote.typing_caches:     # in them 0.0 and -0.0 are one
                clear()
            if self.draws:
                sys.modules["random"].setstate(self.zygote.random_state)
            if self.draws and self.zygote.numpy_random:
                self.zygote.numpy_random.set_state(self.zygote.numpy_state)
            return self.entries is None or self.entries == self.zygote.tameness.entries()
        except BaseException:
            return False

    def test(self, given: int, result: int, errors: int) -> int:
        """Run one test in this process, as a Python started for it would; the exit status."""
        if self.function is None:
            os.dup2(given, 0), os.dup2(result, 1)
        else:       # a call: nothing on standard input, output goes nowhere, the result has its own file
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0), os.dup2(nothing, 1)
            arguments = os.pread(given, os.fstat(given).st_size, 0)
        os.dup2(errors, 2)
        if not self.together:
            if self.function is not None:
                os.dup2(result, TALK)
                result = TALK
            self.zygote.close_from(TALK + (self.function is not None))
        output = sys.stdout
        sys.modules["__main__"] = module = ModuleType("__main__")
        names, status = vars(module), 0
        names.update(__builtins__=builtins, __file__="/tmp/main.py")
        try:
            if self.function is not None:
                sys.setrecursionlimit(50_000)       # as in LiveCodeBench's runner
                names.update(self.zygote.call_names)
            exec(self.code, names)
            if self.function is not None:
                self.answer(names, arguments, result)
        except SystemExit as stop:
            if issubclass(type(stop.code), int):
                status = int.__and__(stop.code, 255)
            elif stop.code is not None:
                status = 1
                os.write(2, explain(stop))
        except BaseException as error:
            status = 1
            os.write(2, explain(error))
        if status != 0:     # no exit function is to make that good
            return status
        try:        # the end of an interpreter: threads, exit functions, output, what the program still holds
            if not self.together:
                if threading.active_count() > 1:
                    threading._shutdown()
                if atexit._ncallbacks():        # both cost pages even where there is nothing to do
                    atexit._run_exitfuncs()
            flush(sys.stdout)
            for name in [name for name, value in names.items()
                         if not callable(value) and type(value) is not ModuleType]:
                names[name] = None      # finalisers find modules, functions and classes still there
            names.clear()
            flush(output)
        except BaseException as error:
            status = 1
            os.write(2, explain(error))
        return status

    def answer(self, names: dict, arguments: bytes, result: int) -> None:
        """Call the function under test, write its value as JSON."""
        function, solution = names.get(self.function), names.get("Solution")
        if isinstance(solution, type) and hasattr(solution, self.function):
            function = getattr(solution(), self.function)
        if function is None:
            raise NameError(f"the program defines no function {self.function!r}")
        text = json.dumps(function(*json.loads(arguments)), default=plain).encode()
        with open(result, "wb", closefd=False) as file:
            file.write(text)


def open_standard_streams() -> None:
    """As a fresh interpreter has them, with the mode that templates for fast input look at. Made in the
    zygote, since in a test they would be a third of its page faults, and where tests share a process."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        raw = FileIO(number, mode, closefd=False)
        raw.name = f"<{name}>"
        stream = TextIOWrapper(BufferedWriter(raw) if number else BufferedReader(raw), "utf-8",
                               "backslashreplace" if number == 2 else None, line_buffering=number == 2)
        stream.mode = mode
        setattr(sys, name, stream), setattr(sys, f"__{name}__", stream)


def flush(stream) -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()


def plain(value):
    """What JSON lacks: numpy's numbers and arrays are taken, anything else is no answer."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the function returned a {type(value).__name__}, which is no JSON value")


def explain(error: BaseException) -> bytes:
    """One line: where in the program, and what."""
    try:
        line, trace = getattr(error, "lineno", None), error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "main.py":
                line = trace.tb_lineno
            trace = trace.tb_next
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        return f"\n{f'line {line}: ' if line else ''}{text[:300]}".encode("utf-8", "replace")
    except BaseException:
        return b"\nan exception that cannot be printed"


if __name__ == "__main__" and sys.argv[1:2] == ["--zygote"]:
    try:
        zygote = Zygote(int(sys.argv[2]))
    except OSError as error:        # refused half-way: the supervisor starts again without that layer
        os.write(int(sys.argv[2]), b"X" + str(error).encode())
        os._exit(1)
    zygote.serve()      # the clean interpreter reads no further than this


# ------------------------------------------------------------------------------------------ comparing outputs

import functools        # noqa: E402
import re               # noqa: E402
import select           # noqa: E402
import socket           # noqa: E402
import subprocess       # noqa: E402
from dataclasses import asdict, dataclass       # noqa: E402
from decimal import Decimal, InvalidOperation   # noqa: E402

TOKEN_TOLERANCE = 1e-5      # absolute, as CodeContests
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")     # one way to match: linear


def same_output(output: str, expected: str, compare: str = "lines", tolerance: float | None = None) -> bool:
    """`lines` (LiveCodeBench, APPS): stripped, line by line, equal as text or as exact decimals. `tokens`
    (CodeContests): white-space tokens, case-insensitive, integers exact, other numbers within 1e-5. With a
    tolerance, numbers may in either be off by that much, absolutely or relative to the expected one."""
    output, expected = output.strip(), expected.strip()
    if output == expected:
        return True
    if compare == "tokens":
        return same_tokens(output.casefold(), expected.casefold(), tolerance)
    lines, wanted = output.split("\n"), expected.split("\n")
    return len(lines) == len(wanted) and all(
        a.strip() == b.strip() or same_decimals(a, b)
        or tolerance is not None and same_tokens(a, b, tolerance) for a, b in zip(lines, wanted, strict=True))


def same_tokens(output: str, expected: str, tolerance: float | None) -> bool:
    tokens, wanted = output.split(), expected.split()
    return len(tokens) == len(wanted) and all(
        a == b or same_number(a, b, tolerance) for a, b in zip(tokens, wanted, strict=True))


def same_number(token: str, expected: str, tolerance: float | None) -> bool:
    if not NUMBER.fullmatch(token) or not NUMBER.fullmatch(expected):
        return False
    if tolerance is None and INTEGER.fullmatch(token) and INTEGER.fullmatch(expected):
        return Decimal(token) == Decimal(expected)      # int() takes minutes for a million digits
    return within(float(token), float(expected), tolerance)


def within(value: float, expected: float, tolerance: float | None) -> bool:
    allowed = TOKEN_TOLERANCE if tolerance is None else tolerance * max(1.0, abs(expected))
    return abs(value - expected) <= allowed


def same_decimals(line: str, expected: str) -> bool:
    tokens, wanted = line.split(), expected.split()
    try:
        return len(tokens) == len(wanted) and all(
            Decimal(a) == Decimal(b) for a, b in zip(tokens, wanted, strict=True))
    except InvalidOperation:        # no number, or one that equals nothing (sNaN)
        return False


def same_value(value, expected, tolerance: float | None) -> bool:
    """JSON values: equal, numbers within the tolerance if there is one."""
    if value == expected or tolerance is None:
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(
            same_value(a, b, tolerance) for a, b in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            same_value(value[key], expected[key], tolerance) for key in value)
    numbers = isinstance(value, (int, float, Decimal)) and isinstance(expected, (int, float, Decimal))
    return numbers and within(float(value), float(expected), tolerance)


def parse_json(text: str):
    """JSON; an integer of more than 4,300 digits becomes a Decimal, as exact and read in linear time."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=Decimal)


# --------------------------------------------------------------------- the supervisor: a sandbox from outside

class Fault(Exception):
    """The machinery failed, not the program: start again, never score."""


class Refused(Exception):
    """The kernel does not give namespaces, or no image in them."""


def memory_file(content: bytes = b"") -> int:
    """A new file in memory for each input and output: nothing one test does to its descriptors reaches
    another, there is no pipe to fill up, and no thread to empty it. By pwrite: reading starts at 0."""
    descriptor = os.memfd_create("verifier")
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)
    return descriptor


def last_text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 4096, max(0, size - 4096)).decode("utf-8", "replace").strip()


def send_with_files(channel: socket.socket, message: bytes, *files: int) -> None:
    rights = struct.pack(f"{len(files)}i", *files)
    channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def start_process(role: str, channel, *kept: int, **options) -> subprocess.Popen:
    """A clean interpreter of this file, with a channel to it; in a session of its own, out of ^C's reach."""
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-B", os.path.abspath(__file__), role, str(channel.fileno())],
        env=dict(PYTHONHASHSEED="0", PYTHONSAFEPATH="1", OPENBLAS_NUM_THREADS="1", LC_ALL="C.UTF-8",
                 MALLOC_ARENA_MAX="1"),     # or each thread takes 64 MiB of address space
        pass_fds=[channel.fileno(), *kept], start_new_session=True, cwd="/", stdin=subprocess.DEVNULL,
        **options)


def own_user_id() -> tuple[socket.socket, int]:
    """A user id that no other sandbox on this machine has; the lock is an abstract socket, gone with us."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for uid in range(61_000, 65_000):
        with contextlib.suppress(OSError):
            lock.bind(f"\0verifier-user-{uid}")
            return lock, uid
    raise Fault("no user id is free between 61000 and 64999")


def count_tasks_of_user() -> int:
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat("/proc/" + name).st_uid == os.geteuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


class Sandbox:
    """One zygote and the program in it."""

    def __init__(self, config: dict):
        self.config = dict(config)
        self.uid_lock, self.config["uid"] = own_user_id() if os.geteuid() == 0 else (None, None)
        try:
            self.report = self.start()
        except Refused as refusal:
            self.config["layers"] = [layer for layer in config["layers"] if layer != "namespaces"]
            self.report = dict(self.start(), namespaces=f"refused: {refusal}")
        self.poll = select.poll()
        self.poll.register(self.control, select.POLLIN)
        # pid 1 of a namespace is the child of the process that entered it; without one, the process itself is
        # the zygote
        self.zygote = next((pid for pid, _, _ in family(self.process.pid)), self.process.pid)
        with open(f"/proc/{self.zygote}/statm") as file:
            self.own_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.counts_processes = self.report["identity"] == "your user id"       # else RLIMIT_NPROC is exact

    def start(self) -> dict:
        isolated = "namespaces" in self.config["layers"]
        self.config["scratch"] = f"{self.config['tmp']}/verifier-{os.urandom(8).hex()}"     # if not isolated
        self.config["user_tasks"] = 0 if isolated else count_tasks_of_user()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60.0)
        self.errors = memory_file()
        kept = [self.config["alive"]] + ([self.uid_lock.fileno()] if self.uid_lock else [])
        with theirs:
            self.process = start_process("--zygote", theirs, *kept, stdout=subprocess.DEVNULL,
                                         stderr=self.errors)
        self.control.send(json.dumps(self.config).encode())
        while True:
            message = self.control.recv(1 << 16)
            if message[:1] == b"R":
                return json.loads(message[1:])
            if message[:1] == b"M":
                self.map_users(*struct.unpack("i", message[1:]))
            else:
                reason = message[1:].decode() or last_text(self.errors)
                self.close()
                if message[:1] == b"X" and isolated:
                    raise Refused(reason)
                raise Fault(f"the sandbox did not start: {reason}")

    def map_users(self, pid: int) -> None:
        """Root of the namespace is root of this one, its user 1 the sandbox's user id; or root alone, in a
        container that has no such user id to give."""
        for users, lines in ((b"2", f"0 0 1\n1 {self.config['uid']} 1\n"), (b"1", "0 0 1\n")):
            with contextlib.suppress(OSError):
                for kind in ("gid_map", "uid_map"):
                    with open(f"/proc/{pid}/{kind}", "w") as file:
                        file.write(lines)
                self.control.send(users)
                return
        self.control.send(b"1")     # none may be written: it finds out, and does without namespaces

    def begin(self, code: int, function: str | None, batch: bool, memory: int, file_size: int,
              cpu_seconds: int) -> None:
        self.talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.poll.register(self.talk, select.POLLIN)
        flags = BATCH * batch | CALL * (function is not None)
        self.ran, self.cpu_before = 0, 0.0
        self.waited_before, _, _ = self.waited([])
        message = b"B" + BEGIN.pack(flags, memory, file_size, cpu_seconds) + (function or "").encode()
        with theirs, self.or_fault():
            send_with_files(self.control, message, code, theirs.fileno())

    def give(self, files: tuple[int, int, int]) -> None:
        with contextlib.suppress(OSError):      # if the program process is gone, next_reply says how it went
            send_with_files(self.talk, b"T", *files)

    def end(self) -> int:
        """Kill what there is of the program, wait until all is clean; the status of the program process."""
        self.poll.unregister(self.talk)
        self.talk.close()
        with self.or_fault():
            self.control.send(b"K")
            return struct.unpack("<xi", self.control.recv(16))[0]

    @contextlib.contextmanager
    def or_fault(self):
        try:
            yield
        except (OSError, struct.error) as error:
            raise Fault(f"the sandbox was lost: {last_text(self.errors) or error}") from None

    def next_reply(self, start: float, limit: float, spare: float, memory: int) -> tuple:
        """What the program process says next: (wait status, seconds, flags). Or (status, message) where it
        says no more.

        A test that was ready to run while the machine ran something else is given that time back at the
        deadline, up to `spare` seconds, unless it competed with itself: no busy machine makes it late."""
        deadline, look, waited = start + limit, start + WATCH_SECONDS, self.waited_before
        self.lost, alone = 0.0, True
        while True:
            wait = min(deadline, look) - time.monotonic()
            for descriptor, _ in self.poll.poll(max(0.0, wait * 1000)):
                if descriptor == self.control.fileno():
                    raise Fault(f"the sandbox was lost: {last_text(self.errors)}")
                message, self.waited_before = self.last_words(), waited
                if self.lost:       # and in the same measure since this was last looked at
                    self.lost = min(spare, self.lost * (time.monotonic() - start) / looked)
                if message[:1] == b"C":
                    return "compile_error", message[1:].decode("utf-8", "replace").strip()
                if len(message) != REPLY.size:
                    return "died", ""
                _, status, seconds, self.cpu_before, flags = REPLY.unpack(message)
                return status, seconds, flags
            now, spent, alive = time.monotonic(), time.process_time(), family(self.zygote)
            cpu, looked = sum(cpu for _, _, cpu in alive) - self.cpu_before, now - start
            alone = alone and len(alive) <= 2       # the program process and the test
            if alone and cpu < limit:
                waited, ready, starved = self.waited(alive)
                lost = sum(waited[pid] - self.waited_before.get(pid, 0.0) for pid in waited)
                if starved or ready and lost > 0.1 * looked:
                    lost = looked - cpu     # all but CPU time: a wait that lasts is in no count yet
                self.lost = max(0.0, min(spare, lost))
            if now >= deadline:
                deadline = start + limit + self.lost
                if now >= deadline:
                    return "time_limit", f"more than {limit:g} s"
            if now >= look:
                if self.held_bytes(alive) > memory:
                    return "memory_limit", f"all processes together hold more than {memory >> 20} MiB"
                if self.counts_processes and len(alive) > self.config["processes"] + 1:
                    return "runtime_error", f"more than {self.config['processes']} processes"
                if self.report["namespaces"][:6] != "active" and directory_is_full(self.config):
                    return "runtime_error", "the scratch directory is full"
                look = now + max(WATCH_SECONDS, 20 * (time.process_time() - spent))     # at most 5 % of a CPU

    def held_bytes(self, alive: list) -> int:
        """Memory that the processes hold, without what the zygote shares with them; of what many share, each
        has its part, where the kernel says so (to root alone)."""
        total = 0
        for pid, resident, _ in alive:
            held = max(0, resident - self.own_bytes)
            if len(alive) > 2:
                path = f"/proc/{pid}/smaps_rollup"
                with contextlib.suppress(OSError, IndexError), open(path, "rb", 0) as file:
                    held = int(file.read().split(b"Pss:")[1].split()[0]) << 10
            total += held
        return total

    def waited(self, alive: list) -> tuple[dict[int, float], bool, bool]:
        """For how many seconds of its life each of zygote, program and test was ready and did not run (the
        worst thread); whether one is ready now, the zygote only before there is another; if so, whether none
        ran since last asked."""
        seconds, ran, ready = {}, 0, False
        for pid in [self.zygote, *(pid for pid, _, _ in alive)]:
            with contextlib.suppress(OSError, ValueError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/schedstat", "rb", 0) as file:
                        run, wait, _ = map(int, file.read().split())
                    seconds[pid] = max(seconds.get(pid, 0.0), wait / 1e9)
                    if pid != self.zygote or not alive:
                        with open(f"/proc/{pid}/task/{thread}/stat", "rb", 0) as file:
                            ready |= file.read().rpartition(b")")[2].split()[0] == b"R"
                        ran += run
        starved, self.ran = ready and ran in (0, self.ran), ran
        return seconds, ready, starved

    def last_words(self) -> bytes:
        for _ in range(2):      # where it ended with unread messages, only the second call has its reply
            with contextlib.suppress(OSError):
                return self.talk.recv(1024)
        return b""

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.errors)
        with contextlib.suppress(FileNotFoundError):        # the zygote removes it, if it has the time to
            empty_directory(self.config["scratch"])
            os.rmdir(self.config["scratch"])


def directory_is_full(config: dict) -> bool:
    """Does scratch on disk hold more than scratch in memory could? Looked at to that size, no further."""
    files, size, stack = 0, 0, [config["scratch"]]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                files += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                if files > SCRATCH_FILES or size > config["scratch_mb"] << 20:
                    return True
    return False


# -------------------------------------------------------------------------------- the supervisor: one verdict

@dataclass
class Outcome:
    """Of one test."""
    status: str
    message: str = ""
    output: str | None = None
    alone: bool = True      # it ran in a process that had run nothing before


class Judge:
    """Judges one item at a time, in the sandboxes of one worker."""

    def __init__(self, config: dict):
        self.config = config
        self.sandboxes: dict[bool, Sandbox] = {}

    def start(self) -> dict[str, str]:
        """Try what the machine gives; the other sandbox, with numpy, comes when it is needed."""
        numpy = "active" if self.config["site"] else "off: not installed"
        return dict(self.sandbox(numpy=False).report, numpy=numpy)

    def sandbox(self, numpy: bool) -> Sandbox:
        numpy = numpy and self.config["site"] is not None
        if numpy not in self.sandboxes:
            self.sandboxes[numpy] = Sandbox(dict(self.config, numpy=numpy))
        return self.sandboxes[numpy]

    def close(self) -> None:
        """End the sandboxes, and what a killed zygote has left: we are the subreaper, it has become ours."""
        for sandbox in self.sandboxes.values():
            sandbox.close()
        self.sandboxes.clear()
        while alive := family(os.getpid()):
            for pid, _, _ in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)

    def judge(self, item: dict) -> dict:
        config, code, tests = self.config, item["code"] or "", item["tests"]
        self.item, self.tests, self.function = item, tests, item.get("fn_name")
        self.every_test = bool(item.get("want_outputs"))
        self.outcomes: list[Outcome | None] = [None] * len(tests)
        self.seconds = 0.0
        if not code.strip():
            self.outcomes[0] = Outcome("empty", "there is no program")
            return self.verdict()
        self.limit = min(item.get("time_limit") or config["test_seconds"], config["program_seconds"])
        self.used, self.spare = 0.0, PATIENCE * config["program_seconds"]
        self.memory = int((item.get("memory_mb") or config["memory_mb"]) * 2**20)
        self.all_memory = max(config["total_memory_mb"] << 20, self.memory * 3 // 2)
        longest = max(len(test["output"]) for test in tests)
        self.output_bytes = max(config["output_mb"] << 20, 2 * longest + (1 << 20))
        if self.function is not None:
            self.expected = [parse_json(test["output"]) for test in tests]
        source = code.encode("utf-8", "surrogatepass")
        self.box = self.sandbox(numpy=b"numpy" in source)
        self.code = memory_file(source)
        try:
            if config["mode"] == "batch":
                self.run(0, len(tests), batch=True)
                self.repeat_first_failure_alone()
            while (first := self.next_test()) is not None:
                self.run(first, len(tests), batch=False)
        finally:
            os.close(self.code)
        return self.verdict()

    def next_test(self) -> int | None:
        """The first test that is still to be run, if any is."""
        for n, outcome in enumerate(self.outcomes):
            if outcome is None:
                return n
            if outcome.status != "accepted" and not self.every_test:
                return None
        return None

    def repeat_first_failure_alone(self) -> None:
        """Of the tests that failed in company; if alone it ends otherwise, nothing after it stands."""
        for n, outcome in enumerate(self.outcomes):
            if outcome is None or outcome.status == "accepted" or outcome.alone:
                if outcome is None or outcome.status != "accepted" and not self.every_test:
                    return
                continue
            self.outcomes[n] = None
            self.run(n, n + 1, batch=False)
            again = self.outcomes[n]
            if (again.status, again.output) != (outcome.status, outcome.output):
                self.outcomes[n + 1:] = [None] * (len(self.tests) - n - 1)
            return

    def run(self, first: int, end: int, batch: bool) -> None:
        """Tests first to end - 1 in one program process, as far as they have no outcome and it lives."""
        if self.used >= self.config["program_seconds"]:
            late = Outcome("time_limit", f"all tests together took {self.config['program_seconds']:g} s")
            self.outcomes[first:] = [late] * (len(self.tests) - first)
            return
        box, cpu_seconds = self.box, int(2 * self.config["program_seconds"]) + 5
        box.begin(self.code, self.function, batch, self.memory, self.output_bytes, cpu_seconds)
        given: list[tuple[int, int, int]] = []      # files of the tests that it has, the running one first
        ended = False
        start = time.monotonic()
        try:
            for n in range(first, end):
                left = self.config["program_seconds"] - self.used
                if self.outcomes[n] is not None or left <= 0:
                    return
                while (ahead := n + len(given)) < min(end, n + TESTS_AHEAD) and self.outcomes[ahead] is None:
                    text = self.tests[ahead]["input"].encode("utf-8", "surrogatepass")
                    given.append((memory_file(text), memory_file(), memory_file()))
                    box.give(given[-1])
                limit = min(self.limit, left)
                reply = box.next_reply(start, limit, self.spare, self.all_memory)
                now = time.monotonic()
                took, start = now - start, now
                self.spare -= box.lost
                status, alone = None, not batch or n == first
                if len(reply) == 3:
                    status, seconds, flags = reply
                    took = seconds if 0.0 <= seconds <= took else took      # the nearer clock, within reason
                    alone, ended = alone or not flags & TOGETHER, bool(flags & SPENT)
                    if ended:
                        box.end()       # before anything is read: none may be left who could write it
                else:
                    ended = True
                    process_status = box.end()
                    if reply[0] == "died":
                        if os.WIFEXITED(process_status) and os.WEXITSTATUS(process_status) == UNCONFINED:
                            raise Fault(f"a program process failed: {last_text(box.errors)}")
                        status = process_status
                outcome = self.outcome(n, status, *given[0][1:]) if status is not None else Outcome(*reply)
                outcome.alone = alone
                self.outcomes[n] = outcome
                for descriptor in given.pop(0):
                    os.close(descriptor)
                if alone or outcome.status == "accepted":       # otherwise it is repeated, and counts then
                    self.seconds += took
                    self.used += max(0.0, took - box.lost)
                if outcome.status == "compile_error":
                    self.outcomes[n:] = [outcome] * (len(self.tests) - n)
                if ended or outcome.status != "accepted" and not self.every_test:
                    return
        finally:
            for descriptor in (descriptor for files in given for descriptor in files):
                os.close(descriptor)
            if not ended:
                box.end()

    def outcome(self, n: int, status: int, result: int, errors: int) -> Outcome:
        """Of a test whose process ended with this wait status and left these files."""
        size = os.fstat(result).st_size
        if size >= self.output_bytes:
            return Outcome("output_limit", f"more than {self.output_bytes >> 20} MiB of output")
        if status != 0:
            return failure(status, last_text(errors))
        output = os.pread(result, size, 0).decode("utf-8", "replace")
        test, tolerance = self.tests[n], self.item.get("float_tolerance")
        if self.function is None:
            same = same_output(output, test["output"], self.item.get("compare") or "lines", tolerance)
        else:
            try:
                same = same_value(parse_json(output), self.expected[n], tolerance)
            except (ValueError, RecursionError, OverflowError):
                same = False
        if same:
            return Outcome("accepted", output=output if self.every_test else None)
        return Outcome("wrong_answer", f"expected {shorten(test['output'])}, got {shorten(output)}", output)

    def verdict(self) -> dict:
        passes = [outcome is not None and outcome.status == "accepted" for outcome in self.outcomes]
        outputs = [outcome and outcome.output for outcome in self.outcomes] if self.every_test else None
        verdict = dict(passed=all(passes), status="accepted", tests_passed=len(passes), seconds=self.seconds,
                       message="", outputs=outputs)
        if not all(passes):
            first = passes.index(False)
            failure = self.outcomes[first]
            place = "" if failure.status in ("empty", "compile_error") else f"test {first + 1}: "
            verdict.update(status=failure.status, message=place + failure.message,
                           tests_passed=sum(passes) if self.every_test else first)
        return verdict


def failure(status: int, errors: str) -> Outcome:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return Outcome("time_limit" if number == signal.SIGXCPU else "runtime_error", f"killed by {name}")
    message = (errors.splitlines() or [""])[-1]
    if re.match(r"(line \d+: )?\w*MemoryError\b", message):
        return Outcome("memory_limit", message)
    return Outcome("runtime_error", message or f"exit status {os.WEXITSTATUS(status)}")


def shorten(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def supervise(descriptor: int) -> None:
    """The supervisor: items come in, verdicts go out, until the caller is gone or says so by SIGTERM."""
    from multiprocessing.connection import Connection       # pickles, between processes of ours alone
    reset_signals()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    caller = Connection(descriptor)
    config = caller.recv()
    kernel = Kernel()
    kernel.prctl(SUBREAPER, 1)
    kernel.prctl(PDEATHSIG, signal.SIGTERM)        # of the thread that started us
    if os.getppid() != config["caller"]:
        return
    judge = Judge(config)
    work = judge.start      # first the report, then verdicts
    try:
        while True:
            try:
                answer = "done", work()
            except Fault as fault:
                judge.close()
                answer = "fault", str(fault)
            try:
                caller.send(answer)
                work = functools.partial(judge.judge, caller.recv())
            except (EOFError, OSError):     # the caller is gone
                return
    finally:
        with contextlib.suppress(SystemExit):       # it blocks first, then raises what came before
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        judge.close()


def tier_of(report: dict[str, str]) -> str:
    active = {layer for layer, state in report.items() if state.startswith("active")}
    for tier, needed in (("A", {"namespaces", "seccomp"}), ("B", {"identity", "landlock", "seccomp"}),
                         ("C", {"landlock", "seccomp"})):
        if needed <= active:
            return tier
    return "D"


# ------------------------------------------------------------------------------------ in the caller's process

class SandboxError(RuntimeError):
    """A fault of the machinery, after one retry: no verdict."""


@dataclass
class Verdict:
    passed: bool
    status: str             # accepted; wrong_answer, time_limit, memory_limit, output_limit, runtime_error,
                            # compile_error, empty (no program)
    tests_passed: int       # before the first that failed; with want_outputs, of all
    seconds: float          # wall clock of its tests
    message: str = ""       # for people
    outputs: list[str | None] | None = None     # with want_outputs: of each test, None if it ended badly


def check_item(item: dict) -> None:
    """ValueError in one sentence where an item is not as the top of this file says."""
    if not isinstance(item, dict):
        raise ValueError(f"an item is an object with code and tests, not a {type(item).__name__}")
    for key in ("code", "tests"):
        if key not in item:
            raise ValueError(f"the key {key!r} is missing; there is {', '.join(map(repr, item)) or 'none'}")
    if not isinstance(item["code"], (str, type(None))):
        raise ValueError(f"code is text, or null where there is none, not a {type(item['code']).__name__}")
    tests, function = item["tests"], item.get("fn_name")
    if not isinstance(tests, list) or not tests:
        raise ValueError("tests is a list of at least one test: a program that was not run is not accepted")
    for n, test in enumerate(tests, 1):
        for key in ("input", "output"):
            if not isinstance(test, dict) or not isinstance(test.get(key), str):
                raise ValueError(f"test {n} needs {key!r}, as text")
    if function is not None:
        if not isinstance(function, str) or not function.isidentifier() or len(function) > 200:
            raise ValueError(f"fn_name is the name of a function, not {function!r}")
        for n, test in enumerate(tests, 1):
            try:
                arguments, _ = parse_json(test["input"]), parse_json(test["output"])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"test {n} of {function} is not JSON: {error}") from None
            if not isinstance(arguments, list):
                raise ValueError(f"the input of test {n} is a JSON list of the arguments of {function}, "
                                 f"not {test['input']!r:.50}")
    if item.get("compare") not in (None, "lines", "tokens"):
        raise ValueError(f"compare is 'lines' or 'tokens', not {item['compare']!r}")
    for key in ("time_limit", "memory_mb", "float_tolerance"):
        value = item.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < 1e6):
            raise ValueError(f"{key} is a positive number, not {value!r}")


class Verifier:
    """Workers that judge programs; close it, or use it in a `with` statement. The keyword arguments are the
    limits above; `layers` can leave out some, to try a lower tier. `tier` and `report` say what protects."""

    def __init__(self, workers: int | None = None, mode: str = "batch", min_tier: str | None = None, *,
                 test_seconds: float = TEST_SECONDS, program_seconds: float = PROGRAM_SECONDS,
                 memory_mb: int = MEMORY_MB, total_memory_mb: int = TOTAL_MEMORY_MB,
                 processes: int = PROCESSES, output_mb: int = OUTPUT_MB, scratch_mb: int = SCRATCH_MB,
                 layers: tuple[str, ...] = LAYERS):
        import queue
        if sys.platform != "linux":
            raise OSError(f"the verifier needs Linux, not {sys.platform}")
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers is at least 1, not {workers}")
        if mode not in ("batch", "strict"):
            raise ValueError(f"mode is 'batch' or 'strict', not {mode!r}")
        if min_tier is not None and min_tier not in TIERS:
            raise ValueError(f"min_tier is one of {', '.join(TIERS)}, not {min_tier!r}")
        self.test_seconds, self.program_seconds = test_seconds, program_seconds
        config = dict(find_image(), mode=mode, test_seconds=test_seconds, program_seconds=program_seconds,
                      memory_mb=memory_mb, total_memory_mb=total_memory_mb, processes=processes,
                      output_mb=output_mb, scratch_mb=scratch_mb, layers=list(layers), caller=os.getpid(),
                      tmp=os.environ.get("TMPDIR", "/tmp"))
        self._owner, self._closed, self._jobs = os.getpid(), False, queue.SimpleQueue()
        self._pool = [Worker(config, self._jobs) for _ in range(self.workers)]
        try:
            self.report = [worker.report.result() for worker in self._pool][0]
            self.tier = tier_of(self.report)
            if self.tier > (min_tier or "C"):
                missing = "; ".join(f"{layer}: {state}" for layer, state in self.report.items()
                                    if state != "active")
                raise ValueError(f"this machine gives tier {self.tier} and {min_tier or 'C'} is asked for "
                                 f"({missing}); min_tier={self.tier!r} would take it")
        except BaseException:
            self.close()
            raise

    def submit(self, item: dict):
        """The Future of an item's Verdict. A bad item is a ValueError here and now."""
        from concurrent.futures import Future
        check_item(item)
        if self._closed:
            raise ValueError("this Verifier is closed")
        future: Future = Future()
        self._jobs.put((item, future))
        return future

    def judge(self, items) -> list[Verdict]:
        """The verdicts of items, in their order."""
        futures = [self.submit(item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()     # where an exception ended the waiting

    def worst_case_seconds(self, programs: int) -> float:
        """So long may `programs` verdicts take, restarts of workers aside: each may use its limit, have one
        test repeated, and be given back what a busy machine took from it, up to PATIENCE times its limit."""
        each = (1 + PATIENCE) * self.program_seconds + min(self.test_seconds, self.program_seconds)
        return -(-programs // self.workers) * each

    def close(self) -> None:
        """Now: what runs is killed, items that wait are cancelled. Returns when no process is left."""
        import queue
        if self._closed or os.getpid() != self._owner:      # a fork of the caller does not own them
            return
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()[1].cancel()
        for worker in self._pool:
            self._jobs.put(None)
            worker.stop()
        for worker in self._pool:
            worker.thread.join()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Worker:
    """The caller's end of one supervisor: a thread that sends items, awaits verdicts, replaces what dies."""

    def __init__(self, config: dict, jobs):
        from concurrent.futures import Future
        self.config, self.jobs = config, jobs
        self.process, self.stopping, self.lock = None, False, threading.Lock()
        self.report: Future = Future()
        self.thread = threading.Thread(target=self.run, name="verifier", daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.report.set_result(self.start())
        except BaseException as error:
            self.report.set_exception(error)
        while (job := self.jobs.get()) is not None:
            item, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.judge(item))
                except BaseException as error:
                    future.set_exception(error)
        self.discard()

    def judge(self, item: dict) -> Verdict:
        for attempt in (1, 2):
            try:
                if self.process is None:
                    self.start()
                return Verdict(**self.ask(item))
            except (SandboxError, OSError) as error:
                self.discard()
                if attempt == 2 or self.stopping:
                    reason = "the Verifier was closed" if self.stopping else error
                    raise SandboxError(f"no verdict: {reason}") from None

    def start(self) -> dict:
        """A new supervisor; what protects its sandbox. It ends with the thread that starts it: this one."""
        from multiprocessing.connection import Pipe
        self.supervisor, theirs = Pipe()
        self.alive, held = os.pipe()        # all our processes hold its other end: at its end, all are gone
        with theirs, self.lock:
            if self.stopping:
                raise SandboxError("the Verifier is closed")
            self.process = start_process("--supervisor", theirs, held)
        os.close(held)
        return self.ask(dict(self.config, alive=held))

    def ask(self, request: dict) -> dict:
        try:
            self.supervisor.send(request)
            kind, content = self.supervisor.recv()
        except (EOFError, OSError):
            kind, content = "fault", "the supervisor of a worker died"
        if kind == "fault":
            raise SandboxError(content)
        return content

    def stop(self) -> None:
        """From another thread: what runs ends, nothing new starts."""
        with self.lock:
            self.stopping = True
            if self.process is not None:
                self.process.terminate()

    def discard(self) -> None:
        if self.process is None:
            return
        with self.lock:
            process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.supervisor.close()
        select.select([self.alive], [], [], 10.0)
        os.close(self.alive)


LOAD_ALL = """
import ctypes, os, sys
for path in sys.argv[1:]:
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(".so"):
                try: ctypes.CDLL(os.path.join(folder, name), os.RTLD_LAZY)
                except OSError: pass
maps = [line.rstrip().split(None, 5) for line in open("/proc/self/maps")]
print(*sorted({fields[5] for fields in maps if len(fields) == 6 and ".so" in fields[5]}), sep="\\n")
"""


@functools.cache
def find_image() -> dict:
    """Which files programs may see: the standard library, numpy, and the shared objects that they need, which
    are found by loading every extension module in a throwaway interpreter (40 ms, once a process)."""
    import importlib.util
    stdlib = os.path.realpath(os.path.dirname(os.__file__))
    numpy = importlib.util.find_spec("numpy")
    folder = os.path.realpath(os.path.dirname(numpy.origin)) if numpy and numpy.origin else None
    packages = [path for path in (folder, f"{folder}.libs") if folder and os.path.isdir(path)]
    command = [sys.executable, "-s", "-S", "-B", "-c", LOAD_ALL, stdlib + "/lib-dynload", *packages]
    maps = subprocess.run(command, env=dict(PYTHONSAFEPATH="1"), cwd="/", stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    objects = {path for path in maps.split("\n") if path and not path.startswith((stdlib, *packages))}
    folders = {os.path.dirname(path) for path in objects}
    links = [entry.path for place in folders for entry in os.scandir(place)
             if entry.is_symlink() and ".so" in entry.name]
    others = [path for path in ("/etc/ld.so.cache", "/usr/share/zoneinfo") if os.path.exists(path)]
    third_party = [f"{stdlib}/{name}-packages" for name in ("site", "dist")]
    return dict(
        stdlib=stdlib, site=os.path.dirname(folder) if folder else None,
        readable=packages + sorted(objects) + others,
        aliases=[(path, os.path.realpath(path)) for path in links if os.path.realpath(path) in objects],
        third_party=[path for path in third_party if os.path.isdir(path)],
        links=[(path, os.readlink(path)) for path in ("/lib", "/lib64", "/lib32") if os.path.islink(path)])


# --------------------------------------------------------------------------------------------------- commands

def read_items(path: str) -> list[dict]:
    items = []
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                try:
                    items.append(json.loads(line))
                    check_item(items[-1])
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path} line {n}: {error}") from None
    return items


def command_judge(path: str, workers: int | None, mode: str, min_tier: str | None) -> int:
    items, faults = read_items(path), 0
    with Verifier(workers, mode, min_tier) as verifier:
        for future in [verifier.submit(item) for item in items]:
            try:
                line = asdict(future.result())
            except SandboxError as error:
                line = asdict(Verdict(False, "sandbox_error", 0, 0.0, str(error)))
                faults += 1
            if line["outputs"] is None:
                del line["outputs"]
            print(json.dumps(line), flush=True)
    return 1 if faults else 0


CANARIES = {     # each tries what it should not get; what is printed is why it did not
    "files": "open(given['file'])",
    "writing": "open(given['target'], 'w')",
    "packages": "sys.path.append(given['site']); __import__(given['package'])",
    "network": "socket.create_connection(('127.0.0.1', given['port']), 1)",
    "signals": "os.kill(given['pid'], 0)",
    "exec": "subprocess.run(['/bin/true'])",
    "root": "os.setuid(0); os.chown(given['file'], 0, 0)",
    "processes": "any(os.fork() == 0 and time.sleep(9) for _ in range(70)); time.sleep(0.5)",
    "memory": "bytearray(300 << 20)",
    "all memory": "[os.fork() == 0 and hoard() for _ in range(6)]; time.sleep(3)",
    "scratch": "[open(str(n), 'wb').write(bytes(1 << 20)) for n in range(100)]; time.sleep(0.5)",
    "output": "print('x' * (20 << 20), flush=True)",
    "time": "time.sleep(9)",
    "leftovers": "open('left') if given['again'] else (open('left', 'w'), os.fork() == 0 and time.sleep(9))",
}
CANARY = """
import json, os, socket, subprocess, sys, time
def hoard():
    memory = bytearray(100 << 20)
    memory[::4096] = bytes(len(memory) // 4096)
    time.sleep(9)
given = json.loads(input())
try:
    {}
except (OSError, MemoryError, ImportError) as error:
    print(f"{{type(error).__name__}}: {{error}}"[:60], end="")
"""


def command_doctor() -> int:
    """Try each protection: exit status 1 if one does not hold."""
    import tempfile
    folders = [path for path in sys.path if path.endswith("-packages") and os.path.isdir(path)]
    packages = [(folder, name) for folder in folders for name in sorted(os.listdir(folder))
                if os.path.exists(f"{folder}/{name}/__init__.py")]
    site, package = next((found for found in packages if found[1] != "numpy"), ("/", "none"))
    broken = 0
    with Verifier(1, "strict", "D") as verifier, socket.create_server(("127.0.0.1", 0)) as listener, \
            tempfile.TemporaryDirectory() as folder:
        for layer, state in dict(verifier.report, tier=verifier.tier).items():
            print(f"{layer:<12}{state}")
        given = dict(file=os.path.abspath(__file__), target=folder + "/canary", pid=os.getpid(),
                     port=listener.getsockname()[1], site=site, package=package)
        for name, attempt in CANARIES.items():
            seconds = 0.5 if name == "time" else 5
            item = dict(code=CANARY.format(attempt), want_outputs=True, time_limit=seconds)
            for again in (False, True)[:1 + (name == "leftovers")]:
                test = dict(input=json.dumps(dict(given, again=again)), output="")
                verdict, = verifier.judge([dict(item, tests=[test])])
            broken += verdict.passed
            outcome = "DOES NOT HOLD" if verdict.passed else "holds"
            print(f"{name:<12}{outcome:<15}{verdict.outputs[0] or verdict.message}")
    return 1 if broken else 0


def main() -> int:
    import argparse
    parser = argparse.ArgumentParser(description="Run programs against tests in a sandbox.")
    commands = parser.add_subparsers(dest="command", required=True)
    judge = commands.add_parser("judge", help="a verdict for each line of a file, in its order")
    judge.add_argument("file", help="items as JSON lines; - is standard input")
    judge.add_argument("--workers", type=int, help="programs judged at a time (default: one a processor)")
    judge.add_argument("--mode", choices=("strict", "batch"), default="strict",
                       help="strict, the default: a process for every test; batch: one for a tame program")
    judge.add_argument("--min-tier", choices=TIERS, help="refuse to run with less protection (default C)")
    commands.add_parser("doctor", help="try each protection on this machine, say which hold")
    arguments = parser.parse_args()
    try:
        if arguments.command == "doctor":
            return command_doctor()
        return command_judge(arguments.file, arguments.workers, arguments.mode, arguments.min_tier)
    except (ValueError, OSError, SandboxError) as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 1 if isinstance(error, SandboxError) else 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["--supervisor"]:
        supervise(int(sys.argv[2]))
    else:
        sys.exit(main())
