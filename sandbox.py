"""Run untrusted programs on inputs, in a sandbox, and return what they print.

    box = Sandbox(config)       # config: find_image() and more, see Verifier
    for result in box.run(source, [("1 2\n", False)], Allowance()):
        print(result.status, result.output)             # "ended", or why it did not end well

This file never sees an expected output: verifier.py alone has them and compares. Linux on x86-64 or
aarch64, standard library only. docs/verifier.md lists what is covered and what is not.

Processes (model code runs in the last two only, and is never forked from the caller):

    supervisor    holds a Sandbox: starts programs, watches their time and memory (class Sandbox)
    zygote        a clean, warm interpreter inside the sandbox (class Zygote)
    program       forked from the zygote for each program: drops rights, compiles (class Program)
    test          forked from the program for each test that runs alone

A test runs alone, in a process of its own, or in company: after others, in the program process.
That needs no fork, so it is several times faster; class Snapshot says what is reset in between.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] == ["--zygote"] and sys.version_info < (3, 11):
    del sys.path[0]     # this folder could shadow the standard library; later: PYTHONSAFEPATH

import _thread
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
from os import _exit, kill
from types import ModuleType

# ---------------------------------------------------------------------------------------- limits

TEST_SECONDS = 10.0         # of one test (Table 11); an item's "time_limit" overrides it
PROGRAM_SECONDS = 120.0     # of all tests of one program together
PATIENCE = 5                # limits above are CPU time; wall clock may be this many times as long
MEMORY_MB = 256             # address space of each process (Table 11); "memory_mb" overrides it
TOTAL_MEMORY_MB = 384       # resident, of all processes of a program: 64 x 256 MiB is 16 GiB
PROCESSES = 64              # at a time, of one program (Table 11)
OUTPUT_MB = 8               # of a test and of any file; an Allowance may have more
SCRATCH_MB = 16             # in at most SCRATCH_FILES files
SCRATCH_FILES = 1024
OPEN_FILES = 64
STACK_MB = 64
WATCH_SECONDS = 0.05        # how often the supervisor looks at a running program
TESTS_AHEAD = 4             # sent to the program process in advance, so that it never waits

LAYERS = ("namespaces", "landlock", "seccomp")

# supervisor -> zygote. "B": begin a program, with flags, address space, file size, CPU seconds,
# function name, and the files of its code and its socket. "K": kill it; the answer is "D" with its
# wait status, once the sandbox is clean again.
BEGIN = struct.Struct("<BQQQ")
CALL = 1
# supervisor -> program: for each test whether it runs alone, whether it is the last, and the files
# of input, result and error output. Back: for each test "T" with wait status, seconds, CPU seconds,
# and whether the program process ends with this test. Or once "C" with the error of compiling.
TEST = struct.Struct("<c??")
REPLY = struct.Struct("<cidd?")
UNCONFINED = 125            # exit status of a program process that could not be confined

# Descriptors: the result of a call, a program's socket to the supervisor, Landlock's ruleset, and
# the two of Zygote.find_libraries.
RESULT, TALK, RULES, STDLIB, SITE = 3, 39, 40, 50, 51


# ------------------------------------------------------- inside the sandbox: what the kernel does

# What Python, numpy, threads, multiprocessing (fork) and asyncio use. Left out: execve, socket,
# setsockopt (megabytes of kernel memory behind each descriptor), bind, connect, sendmsg (a filter
# cannot read its address), ptrace, process_vm_*, mount and its kin, unshare, setns, set*id, capset,
# keyctl, bpf, perf, io_uring, memfd_create, userfaultfd, System V and POSIX queues, mlock, inotify,
# xattr, mknod, setpriority, pidfd_*, seccomp, landlock_*; and clone3: glibc then takes clone, whose
# flags a filter can read. A call that is not listed fails with ENOSYS.
ALLOWED_CALLS = {
    "x86_64": "0-28 32-40 44-45 47-48 51-53 55-58 60-63 72-91 95-100 102 104 107-108 110-111 115 "
              "118 120-121 124 127-128 130-132 137-138 140 143 145-147 157-158 160 186 200-204 213 "
              "217-219 221-226 228-235 247 257-258 262-271 273-274 280-281 284-285 290-293 295-296 "
              "302 309 316 318 324 326-328 332 334 436 439 441 449 452",
    "aarch64": "17 19-25 29 32 34-38 43-50 52-53 56-57 59 61-73 78-80 82-83 88 93-96 98-103 "
               "107-111 113-115 120-126 128-137 139 141 148 150 153 155-156 158 160 163-169 "
               "172-179 199 204-207 209-210 212 214-216 220 222-223 226-227 232-233 260-261 276 "
               "278 283 285-287 291 293 436 439 441 449 452",
}
CALLS = {
    "x86_64": dict(arch=0xC000003E, seccomp=317, clone=56, open=2, openat=257, sendto=44,
                   socketpair=53, fcntl=72, ioctl=16, prctl=157, prlimit64=302,
                   sched_setaffinity=203),
    "aarch64": dict(arch=0xC00000B7, seccomp=277, clone=220, openat=56, sendto=206, socketpair=199,
                    fcntl=25, ioctl=29, prctl=167, prlimit64=261, sched_setaffinity=122),
}
# Calls with an argument that is checked: its position, the bits that count, the values allowed.
# O_TRUNC only to write: Landlock checks it from Linux 6.2 on
CREATING = (0, 1, 2, 3, 0x201, 0x202)
ARGUMENTS = {
    "clone": (0, 0x7E020000, (0,)),     # no CLONE_NEW*
    "open": (1, 0x203, CREATING),
    "openat": (2, 0x203, CREATING),
    "sendto": (5, -1, (0,)),            # no address: sockets of the host have paths
    "socketpair": (0, -1, (1,)),        # AF_UNIX, which asyncio needs
    "fcntl": (1, -1, (*range(8), 1030)),        # no F_SETOWN, which sends signals
    "ioctl": (1, -1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),     # terminal? how wide?
    "prctl": (0, -1, (1, 2, 3, 15, 16)),        # not "dumpable again": cores may go to the host
    "prlimit64": (0, -1, (0,)),         # of itself only
    "sched_setaffinity": (0, -1, (0,)),
}
# Only the sandbox may send SIGKILL; a magic number as a fourth argument, which the kernel ignores,
# shows that it does. So a test that dies of it was killed from outside, say for want of memory.
# os.kill of programs sends LIKE_SIGKILL in its place.
KILLS = {"x86_64": {62: 1, 200: 1, 234: 2}, "aarch64": {129: 1, 130: 1, 131: 2}}
# A program that lowers its own limit of CPU time would die of SIGKILL, too: setrlimit, prlimit64.
SETS_LIMIT = {"x86_64": {160: 0, 302: 1}, "aarch64": {164: 0, 261: 1}}
RLIMIT_CPU, MAGIC_ARGUMENT = 0, 3
LIKE_SIGKILL = 64       # what a program's own SIGKILL arrives as; nothing handles it
SESSIONS = {"x86_64": {109, 112}, "aarch64": {154, 157}}            # setpgid, setsid
SIGNALS = {"x86_64": {62, 200, 234}, "aarch64": {129, 130, 131}}    # kill, tkill, tgkill
# truncate, chmod, utime and their kin: only an image keeps them from your files, Landlock does not
METADATA = {"x86_64": {76, 90, 91, 132, 235, 268, 280, 452}, "aarch64": {45, 52, 53, 88, 452}}
# the same numbers on both
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, MOUNT_SETATTR = 444, 445, 446, 442
PDEATHSIG, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38     # prctl


class Kernel:
    """libc and the system calls that the standard library lacks.

    Functions and structures are made before the first fork: the first use of one through ctypes
    costs 150 us of page faults, which each child would pay again.
    """

    def __init__(self):
        import ctypes
        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        # os.fork() runs hooks of random and threading: a child then costs 740 us instead of 277
        self.fork = ctypes.PyDLL(None).fork

    def call(self, name: str, *arguments, what: str = "") -> int:
        result = getattr(self.libc, name)(*arguments)
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, f"{what or name}: {os.strerror(number)}")
        return result

    def mount(self, source: str, target: str, kind: str | None, flags: int,
              data: str | None = None) -> None:
        texts = [text and text.encode() for text in (source, target, kind, data)]
        flags = self.ctypes.c_ulong(flags)
        self.call("mount", *texts[:3], flags, texts[3], what=f"mount {target}")

    def prctl(self, option: int, value: int) -> None:
        self.call("prctl", option, value, 0, 0, 0)


def numbers_in(intervals: str) -> set[int]:
    """'0-2 5' -> {0, 1, 2, 5}"""
    numbers: set[int] = set()
    for interval in intervals.split():
        first, _, last = interval.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


LOAD, MASK, RETURN, EQUAL, AT_LEAST = 0x20, 0x54, 0x06, 0x15, 0x35      # classic BPF
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38, 0x80000000


def rules_for_kills(machine: str, magic: int) -> list[list[int]]:
    """Part of the filter; the number of the call is loaded before it and after it."""
    code = []
    for call, argument in KILLS[machine].items():
        code += [[EQUAL, 0, 6, call],
                 [LOAD, 0, 0, 16 + 8 * argument],
                 [EQUAL, 0, 3, signal.SIGKILL],
                 [LOAD, 0, 0, 16 + 8 * MAGIC_ARGUMENT],
                 [EQUAL, 1, 0, magic],
                 [RETURN, 0, 0, EPERM],
                 [LOAD, 0, 0, 0]]
    for call, argument in SETS_LIMIT[machine].items():
        code += [[EQUAL, 0, 6, call],
                 [LOAD, 0, 0, 16 + 8 * argument],
                 [EQUAL, 0, 3, RLIMIT_CPU],
                 [LOAD, 0, 0, 24 + 8 * argument],
                 [EQUAL, 1, 0, 0],      # no new limit: prlimit64 only reads it
                 [RETURN, 0, 0, EPERM],
                 [LOAD, 0, 0, 0]]
    return code


def seccomp_filter(machine: str, isolated: bool, signals_stay: bool, magic: int = 0) -> bytes:
    """The filter as classic BPF: a few calls by an argument, the others by a search over intervals.

    isolated: in namespaces. signals_stay: something else keeps signals inside the sandbox. magic:
    what shows that a SIGKILL is the sandbox's own.
    """
    number, allowed = CALLS[machine], numbers_in(ALLOWED_CALLS[machine])
    if isolated:
        allowed |= SESSIONS[machine]        # elsewhere, the process group is what gets killed
    else:
        allowed -= METADATA[machine]
        if not signals_stay:
            allowed -= SIGNALS[machine]
    code: list[list[int]] = []

    def emit(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append([operation, if_true, if_false, value])

    emit(LOAD, 4)
    emit(EQUAL, number["arch"], 1, 0)
    emit(RETURN, KILL)
    emit(LOAD, 0)
    code += rules_for_kills(machine, magic)
    for name, (argument, bits, values) in ARGUMENTS.items():
        if name in number:
            emit(EQUAL, number[name], 0, len(values) + 4)
            emit(LOAD, 16 + 8 * argument)
            emit(MASK, bits & 0xFFFFFFFF)
            for n, value in enumerate(values):
                emit(EQUAL, value, len(values) - n, 0)
            emit(RETURN, EPERM)
            emit(RETURN, ALLOW)
    # numbers at which "allowed" changes: a binary search keeps installing the filter cheap, since
    # the kernel evaluates it once for every system call
    starts = [0] + [n for n in range(1, max(allowed) + 2) if (n in allowed) != (n - 1 in allowed)]

    def search(low: int, high: int) -> None:
        if high - low == 1:
            emit(RETURN, ALLOW if starts[low] in allowed else ENOSYS)
            return
        middle = (low + high) // 2
        emit(AT_LEAST, starts[middle])
        jump = len(code)
        search(low, middle)
        code[jump - 1][1] = len(code) - jump
        search(middle, high)

    search(0, len(starts))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
MAKE_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11


def landlock_rules(kernel: Kernel, abi: int, readable: list[str], listable: list[str],
                   scratch: str) -> int:
    """A ruleset: read `readable` trees, list `listable` folders, in `scratch` all but execute."""
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


NEW_USER = 0x10000000
NEW_OTHERS = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME = 1, 2, 4, 8, 32, 1024
BIND, REC, PRIVATE = 4096, 16384, 1 << 18
DETACH, AT_RECURSIVE = 2, 0x8000


def in_image(path: str) -> str:
    """Where a file of the host is in the image: at its own path, unless that is the scratch's."""
    return "/host" + path if path.startswith("/tmp/") else path


class Image:
    """A root with the standard library and config["readable"] in it, read-only, and nothing else.

    No directory is made on the host, so none can be left behind.
    """

    def __init__(self, kernel: Kernel, config: dict):
        self.kernel, self.config = kernel, config
        kernel.mount("none", "/", None, REC | PRIVATE)
        kernel.mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
        os.mkdir("/tmp/new")
        os.mkdir("/tmp/old")
        kernel.mount("/tmp/new", "/tmp/new", None, BIND)
        kernel.call("pivot_root", b"/tmp", b"/tmp/old")     # so that what is in /tmp can be bound
        os.chdir("/")
        self.bind_files()
        self.make_devices()
        mount_scratch(kernel, "/new/box/tmp")
        self.leave_host()

    def bind(self, path: str) -> None:
        source, target = "/old" + path, "/new" + in_image(path)
        os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(source):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        self.kernel.mount(source, target, None, BIND | REC)

    def make_read_only(self, path: str) -> None:
        # mount_setattr adds flags, so it never fails on locked ones as a remount does
        target = ("/new" + in_image(path)).encode()
        attributes = struct.pack("<QQQQ", RDONLY | NOSUID | NODEV, 0, 0, 0)
        self.kernel.call("syscall", MOUNT_SETATTR, -100, target, AT_RECURSIVE, attributes,
                         len(attributes), what=f"mount_setattr {path}")

    def bind_files(self) -> None:
        config = self.config
        for link, target in config["links"]:        # /lib -> usr/lib
            os.makedirs("/new/" + target.lstrip("/"), exist_ok=True)
            os.symlink(target, "/new" + link)
        self.bind(config["stdlib"])
        for path in config["third_party"]:          # folders of other packages inside the stdlib's
            self.kernel.mount("tmpfs", "/new" + in_image(path), "tmpfs", NOSUID | NODEV,
                              "size=64k,mode=755")
        for path in config["readable"]:
            self.bind(path)
        for path in [config["stdlib"], *config["readable"]]:
            self.make_read_only(path)
        for link, target in config["aliases"]:      # libz.so.1 -> libz.so.1.3
            os.symlink(in_image(target), "/new" + in_image(link))

    def make_devices(self) -> None:
        for name in ("null", "zero", "full", "random", "urandom"):
            self.bind("/dev/" + name)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.symlink(f"/proc/self/fd/{number}", "/new/dev/" + name)
        os.makedirs("/new/box/tmp")
        os.mkdir("/new/proc")
        os.symlink("/box/tmp", "/new/tmp")
        os.symlink("/box/tmp", "/new/dev/shm")
        try:
            self.kernel.mount("proc", "/new/proc", "proc", NOSUID | NODEV | NOEXEC,
                              "subset=pid,hidepid=2")
        except OSError:     # refused where the host's own is masked, as in containers
            self.config["no_proc"] = True       # there is no /dev/stdin then

    def leave_host(self) -> None:
        kernel = self.kernel
        kernel.call("umount2", b"/old", DETACH)
        os.chdir("/new")
        kernel.call("pivot_root", b".", b".")
        kernel.call("umount2", b".", DETACH)
        os.chdir("/")
        kernel.mount("none", "/", None, BIND | REMOUNT | RDONLY | NOSUID | NODEV)
        kernel.call("sethostname", b"sandbox", 7)


def mount_scratch(kernel: Kernel, where: str) -> None:
    # NOATIME: otherwise a test could tell that an earlier one has read the directory
    kernel.mount("tmpfs", where, "tmpfs", NOSUID | NODEV | NOEXEC | NOATIME,
                 f"size={SCRATCH_MB}m,nr_inodes={SCRATCH_FILES},mode=1777")


def empty_directory(path: str) -> None:
    """Remove all that is in `path`, whatever its depth and mode; follow no link.

    Goes in and out of folders by descriptor: a tree 1,500 deep, on which shutil.rmtree fails, needs
    neither recursion nor long paths. No process that could move things about may be left.
    """
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
            os.close(here)
            return
        there = os.open(full or "..", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        os.close(here)
        here = there
        if full is None:
            os.rmdir(entered.pop(), dir_fd=here)
        else:
            entered.append(full)


def family(root: int) -> list[tuple[int, int, float]]:
    """The living descendants of a process, parents first: (pid, resident bytes, CPU seconds).

    CPU seconds include children that were waited for. Reads all of /proc (15 us a process), since
    many kernels are built without lists of children.
    """
    page, tick = os.sysconf("SC_PAGE_SIZE"), 1 / os.sysconf("SC_CLK_TCK")
    children: dict[int, list[tuple[int, int, float]]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb", 0) as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:     # it has ended
            continue
        if fields[0] != b"Z":
            process = int(name), int(fields[21]) * page, sum(map(int, fields[11:15])) * tick
            children.setdefault(int(fields[1]), []).append(process)
    descendants = list(children.get(root, ()))
    for process in descendants:     # grows while it is walked
        descendants.extend(children.get(process[0], ()))
    return descendants


def reset_signals() -> None:
    """Undo what the caller ignores or blocks: where SIGCHLD is ignored, there is no exit status."""
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - kept:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


# ------------------------------------------------------------------ inside the sandbox: the zygote

# Modules whose state no Snapshot can put back. The zygote takes them out of sys.modules, so that a
# test which imports one is seen to have imported something new: the next gets another process.
UNSHARED = ("atexit", "ctypes", "ctypes._endian", "gc", "resource", "signal")


class Zygote:
    """The warm interpreter. No model code runs in it."""

    def __init__(self, control: int):
        import _socket
        import resource
        self.resource = resource
        self.control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)
        self.config = json.loads(self.control.recv(1 << 20))
        self.report = {layer: "off" for layer in LAYERS}
        self.kernel = Kernel()
        self.test_uid: int | None = None    # the user id that programs change to, as named in here
        self.prepare_environment()
        self.isolated = "namespaces" in self.config["layers"]
        if self.isolated:
            self.enter_namespaces()
            scratch_rule = self.enter_image()
        else:
            scratch_rule = self.make_scratch()
        self.find_libraries()
        self.warm_up()
        self.prepare_landlock(scratch_rule)
        self.prepare_seccomp()
        self.prepare_identity()
        self.set_limits()
        # May a program process end what its tests leave by kill(-1)? Only if that cannot reach the
        # caller.
        self.can_sweep = self.isolated or self.test_uid is not None or self.scoped
        self.clean = self.scratch_state()
        self.snapshot = Snapshot(self)
        gc.freeze()

    def prepare_environment(self) -> None:
        os.environ.clear()
        # OpenBLAS with two threads aborts in 256 MiB
        os.environ.update(HOME="/tmp", PATH="/nonexistent", LC_ALL="C.UTF-8",
                          OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        os.umask(0o022)
        reset_signals()     # SIGINT as well: pid 1 is immune to what it does not handle
        # if the machine runs out of memory, the kernel is to kill these processes, not the caller
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")

    def enter_namespaces(self) -> None:
        root, uid, gid = os.geteuid() == 0, os.geteuid(), os.getegid()
        try:
            self.kernel.call("unshare", NEW_USER | NEW_OTHERS)
        except OSError:
            if not root:
                raise
            self.kernel.call("unshare", NEW_OTHERS)     # real root, user namespaces switched off
            self.test_uid = self.config["uid"]
        else:
            if root:    # RLIMIT_NPROC never binds root, so programs need a second user id, which
                self.control.send(b"M" + struct.pack("i", os.getpid()))     # the supervisor maps
                self.test_uid = 1 if self.control.recv(1) == b"2" else None
            else:
                maps = dict(setgroups="deny", uid_map=f"1000 {uid} 1", gid_map=f"1000 {gid} 1")
                for name, line in maps.items():
                    with open("/proc/self/" + name, "w") as file:
                        file.write(line)
        child = os.fork()       # pid 1 of the namespace: when it ends, all others in there die
        if child:
            self.control.close()
            os.waitpid(child, 0)
            os._exit(1)
        self.kernel.prctl(PDEATHSIG, 9)

    def enter_image(self) -> str:
        config = self.config
        Image(self.kernel, config)
        config["stdlib"] = in_image(config["stdlib"])
        config["site"] = config["site"] and in_image(config["site"])
        config["readable"] = [in_image(path) for path in config["readable"]]
        self.scratch = "/tmp"
        self.report["namespaces"] = "active" + (", but no /proc" if config.get("no_proc") else "")
        return "/box"       # for Landlock: the folder above the scratch outlives its mounts

    def make_scratch(self) -> str:
        self.scratch = self.config["scratch"]
        os.mkdir(self.scratch, 0o700)
        if os.geteuid() == 0:
            self.test_uid = self.config["uid"]
            os.chown(self.scratch, self.test_uid, self.test_uid)
        return self.scratch

    def find_libraries(self) -> None:
        """Set sys.path: the standard library, and the folder of numpy.

        Where the test's user id cannot reach them (a Python below /root), through two descriptors
        that stay open in every process.
        """
        stdlib, site = self.config["stdlib"], self.config["site"]
        self.libraries: tuple[int, ...] = ()
        unreadable = False
        if not self.isolated and self.test_uid is not None:
            child = os.fork()
            if child == 0:
                os.setresuid(self.test_uid, self.test_uid, self.test_uid)
                os._exit(0 if os.access(stdlib + "/os.py", os.R_OK) else 1)
            unreadable = os.waitpid(child, 0)[1] != 0
        if unreadable:
            self.libraries = STDLIB, SITE
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
        """Import what programs use most. More would slow every fork: a module is pages to copy."""
        import __future__, array, bisect, cmath, collections, copy, datetime   # noqa: E401, F401
        import functools, heapq, itertools, math, operator, queue, random, re  # noqa: E401, F401
        import string, typing                                                  # noqa: E401, F401
        from _sitebuiltins import Quitter
        builtins.exit = Quitter("exit", "Ctrl-D")       # without -S, site does this
        builtins.quit = Quitter("quit", "Ctrl-D")
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)       # no judge has Python's limit of 4,300 digits
        if self.config["numpy"]:
            import numpy, numpy.fft, numpy.linalg, numpy.random         # noqa: E401, F401
            numpy.random.seed(0)
            # a default_rng() without a seed starts the same in every test as well
            entropy = sys.modules["numpy.random.bit_generator"]
            if hasattr(entropy, "randbits"):
                entropy.randbits = lambda bits: 0
        random.seed(0)
        threading.stack_size = _thread.stack_size = modest_stack_size
        self.given_names = names_for_calls()
        if self.config["prelude"] == "lcb":
            exec(LCB_PRELUDE, self.given_names)
        for name in UNSHARED:
            sys.modules.pop(name, None)
        # programs are not to find this file there
        sys.modules["__main__"] = ModuleType("__main__")
        sys.argv[:] = ["main.py"]
        open_standard_streams()
        sys.path_importer_cache.clear()
        compile("0", "", "eval")    # makes the types of syntax trees: 1.3 ms in each program else
        gc.collect()
        gc.freeze()

    def prepare_landlock(self, scratch: str) -> None:
        self.rules, self.scoped = -1, False
        if "landlock" not in self.config["layers"]:
            return
        stdlib, site = self.config["stdlib"], self.config["site"]
        if self.isolated:
            readable, listable = [stdlib], ["/"]
        else:       # a rule cannot take other packages out of a tree, so the entries are named
            entries = os.scandir(stdlib)
            readable = [e.path for e in entries if e.path not in self.config["third_party"]]
            listable = [stdlib] + [site] * bool(site)
        readable += self.config["readable"]
        try:
            abi = self.kernel.call("syscall", LANDLOCK_CREATE, None, 0, 1, what="landlock")
            rules = landlock_rules(self.kernel, abi, readable, listable, scratch)
        except OSError as error:
            self.report["landlock"] = f"refused: {error.strerror}"
            return
        os.dup2(rules, RULES)
        os.close(rules)
        self.rules, self.scoped = RULES, abi >= 6
        self.report["landlock"] = "active"
        if not self.scoped:
            self.report["landlock"] += ", but does not keep signals in"

    def prepare_seccomp(self) -> None:
        self.install_filter = lambda: 0
        self.kill_all = lambda: self.kernel.libc.kill(-1, signal.SIGKILL)
        machine = os.uname().machine
        if "seccomp" not in self.config["layers"]:
            return
        if machine not in CALLS:
            self.report["seccomp"] = f"refused: no list of calls for {machine}"
            return
        ctypes, call, number = self.kernel.ctypes, self.kernel.call, CALLS[machine]["seccomp"]
        signals_stay = self.scoped or self.test_uid is not None
        magic = struct.unpack("<I", os.urandom(4))[0] >> 1
        code = seccomp_filter(machine, self.isolated, signals_stay, magic)
        buffer = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
        program = ctypes.create_string_buffer(header, len(header))

        def install(keep=buffer):
            # flag 4 (SPEC_ALLOW): without it, kernels before 5.16 slow every filtered process down
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
            kill_number, syscall = min(KILLS[machine]), self.kernel.libc.syscall
            self.kill_all = lambda: syscall(kill_number, -1, signal.SIGKILL, 0, magic)
            os.kill, os.killpg = without_sigkill(os.kill), without_sigkill(os.killpg)

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
        """Limits that all programs share; the program process sets those of an Allowance."""
        self.kernel.prctl(DUMPABLE, 0)      # no ptrace, no /proc/1/mem
        self.kernel.prctl(SUBREAPER, 1)     # orphans become our children, none is lost
        processes = PROCESSES + (1 if self.test_uid is not None else 3)     # and our own
        if not self.isolated and self.test_uid is None:     # tasks of the user count as well
            processes += self.config["user_tasks"] + 256
        limits = dict(CORE=0, NOFILE=OPEN_FILES, STACK=STACK_MB << 20, MEMLOCK=0, MSGQUEUE=0,
                      SIGPENDING=256, NPROC=processes)
        for name, value in limits.items():
            limit = getattr(self.resource, "RLIMIT_" + name)
            hard = self.resource.getrlimit(limit)[1]
            if hard != self.resource.RLIM_INFINITY:
                value = min(value, hard)
            # programs raise their stack limit, so its hard limit stays
            self.resource.setrlimit(limit, (value, hard if name == "STACK" else value))

    def scratch_state(self) -> tuple:
        now = os.stat(self.scratch)     # any change moves ctime, which cannot be set back
        return now.st_mode, now.st_uid, now.st_nlink, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    def close_all_but(self, *kept: int) -> None:
        """And the standard three. kept: in increasing order."""
        first = 3
        for descriptor in (*kept, *self.libraries, 1 << 16):
            os.closerange(first, descriptor)
            first = descriptor + 1

    def serve(self) -> None:
        """Begin and end programs as the supervisor asks, until it is gone."""
        child = 0
        self.control.send(b"R" + json.dumps(self.report).encode())
        while True:
            message, ancillary, _, _ = self.control.recvmsg(4096, 64)
            if message[:1] == b"B":
                code, talk = struct.unpack("2i", ancillary[0][2])
                child = self.kernel.fork()
                if child == 0:
                    self.be_program(message[1:], code, talk)
                os.close(code)
                os.close(talk)
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

    def be_program(self, message: bytes, code: int, talk: int) -> None:
        os.setpgid(0, 0)
        try:
            program = Program(self, message, code, talk)
            program.serve()
        except BaseException as error:
            os.write(2, explain(error))
        finally:
            _exit(UNCONFINED)

    def end(self, program: int) -> int:
        """Kill and reap what is left of a program, empty the scratch; return its wait status."""
        status = 0
        while True:
            if self.isolated:
                victims = [-1]
            elif self.report["seccomp"] == "active":
                victims = [-program, program]   # nobody is allowed to leave the group
            else:
                victims = [pid for pid, _, _ in family(os.getpid())]
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    kill(victim, signal.SIGKILL)
            try:
                pid, ended = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            if pid == program:
                status = ended
        if self.scratch_state() != self.clean:
            if self.isolated:
                self.kernel.call("umount2", b"/box/tmp", DETACH)
                mount_scratch(self.kernel, "/box/tmp")
            else:
                os.chmod(self.scratch, 0o700)
                empty_directory(self.scratch)
            self.clean = self.scratch_state()
        return status


# What LiveCodeBench's runner puts before every program. With Verifier(prelude="lcb") programs have
# these names without importing them, so that scores compare with published ones.
LCB_PRELUDE = "".join(f"from {name} import *\n" for name in (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json builtins typing").split()) + (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, "
    "itertools, functools, operator, io, sys, json\n")


def without_sigkill(kill):
    """os.kill for programs, to which the filter denies SIGKILL."""
    def kill_otherwise(pid: int, number: int) -> None:
        kill(pid, LIKE_SIGKILL if number == signal.SIGKILL else number)
    return kill_otherwise


def modest_stack_size(size: int = 0, set_size=_thread.stack_size) -> int:
    """threading.stack_size for programs that ask for 256 MiB and more before a deep recursion.

    The kernel counts what a thread reserves for its stack, so that would be all their memory. They
    use little of it: Python 3.11 and later recurse without the C stack.
    """
    return set_size(min(size, STACK_MB << 20))


def names_for_calls() -> dict:
    """What solutions for LeetCode use without importing it. Builtins stay: pow is not math's."""
    starred = ("typing string random operator math itertools functools copy bisect heapq datetime "
               "collections").split()
    names: dict = {}
    for module in map(sys.modules.get, starred):
        for name in getattr(module, "__all__", None) or dir(module):
            if name[0] != "_":
                names[name] = getattr(module, name)
    for name in [*starred, "re", "sys"]:
        if name != "datetime":      # the class, as star imports leave it
            names[name] = sys.modules[name]
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


# ------------------------------------------------- inside the sandbox: one program and its tests

# If a program names one, it is imported once, not in every test.
# They have no state, or Snapshot resets it.
IMPORTED_AHEAD = ("dataclasses", "decimal", "fractions", "statistics")


class Program:
    """The process of one program. Model code runs in its children, or in itself (in company)."""

    def __init__(self, zygote: Zygote, message: bytes, code: int, talk: int):
        import _socket
        self.zygote, kernel, resource = zygote, zygote.kernel, zygote.resource
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
            kernel.call("syscall", LANDLOCK_RESTRICT, zygote.rules, 0, what="landlock_restrict")
        zygote.close_all_but(TALK)
        zygote.install_filter()
        self.talk = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, TALK)
        try:        # from here on, what fails is the program's fault
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            self.code = compile(source, "main.py", "exec", dont_inherit=True)
            ahead = [module for module in IMPORTED_AHEAD if module.encode() in source]
            for module in ahead:
                __import__(module)
        except BaseException as error:
            self.talk.send(b"C" + explain(error))
            _exit(0)
        # as in LiveCodeBench, what stands below "if __name__ == '__main__'" is no part of a call
        self.name = "__main__" if self.function is None else "solution"
        self.snapshot = zygote.snapshot
        self.snapshot.draws = b"random" in source or self.function is not None
        if ahead:
            self.snapshot.modules = dict(sys.modules)
        self.pid = os.getpid()
        gc.freeze()     # else the first collection in a test would write to, and copy, all this

    def serve(self) -> None:
        try:
            while True:
                message, ancillary, _, _ = self.talk.recvmsg(TEST.size, 64)
                if not message:
                    break
                _, alone, last = TEST.unpack(message)
                files = struct.unpack("3i", ancillary[0][2])
                start, spent = time.perf_counter(), self.cpu_seconds()
                if alone:
                    status, reusable = self.test_in_child(*files)
                else:
                    status, reusable = self.test_in_company(*files, last=last)
                seconds, spent = time.perf_counter() - start, self.cpu_seconds() - spent
                ends = status != 0 or not reusable
                self.talk.send(REPLY.pack(b"T", status, seconds, spent, ends))
                if ends:
                    break
        except BaseException:       # at the program's own limits, or it has tampered with us
            _exit(1)
        _exit(0)

    def cpu_seconds(self) -> float:
        """Of this process and the children it has waited for."""
        total = 0.0
        for who in (0, -1):     # RUSAGE_SELF, RUSAGE_CHILDREN
            usage = self.zygote.resource.getrusage(who)
            total += usage.ru_utime + usage.ru_stime
        return total

    def test_in_child(self, *files: int) -> tuple[int, bool]:
        """(wait status, whether this process can run another test)"""
        child = self.zygote.kernel.fork()
        if child < 0:
            raise OSError("no process for a test")
        if child == 0:
            status = 1
            try:
                status = self.test(*files, alone=True)
            finally:
                _exit(status)
        for descriptor in files:
            os.close(descriptor)
        status = os.waitpid(child, 0)[1]
        if not self.zygote.can_sweep:
            return status, False        # the zygote kills what the test has left
        while True:
            self.zygote.kill_all()
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        return status, self.zygote.scratch_state() == self.zygote.clean

    def test_in_company(self, *files: int, last: bool) -> tuple[int, bool]:
        """The same, for a test in this very process."""
        status = self.test(*files, alone=False)
        if os.getpid() != self.pid: # a process that the test has forked, at its end
            _exit(status)
        return status << 8, not last and self.snapshot.restore()

    def test(self, given: int, result: int, errors: int, alone: bool) -> int:
        """Run one test in this process, as a new Python would; return the exit status."""
        arguments = b""
        if self.function is None:
            os.dup2(given, 0)
            os.dup2(result, 1)
        else:       # a call: no standard input, output goes nowhere, the result has its own file
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
            arguments = os.pread(given, os.fstat(given).st_size, 0)
        os.dup2(errors, 2)
        kept = (RESULT,) if self.function is not None else ()
        if kept:
            os.dup2(result, RESULT)
        self.zygote.close_all_but(*kept, *(() if alone else (TALK,)))
        output = sys.stdout
        status = self.run_code(arguments)
        if status == 0:     # otherwise no exit function may make it good
            status = finish(output, self.name)
        return status

    def run_code(self, arguments: bytes) -> int:
        """Run the program in a new module, which only sys.modules holds afterwards."""
        sys.modules[self.name] = module = ModuleType(self.name)
        names = vars(module)
        try:
            if self.function is not None or self.zygote.config["prelude"]:
                sys.setrecursionlimit(50_000)       # as LiveCodeBench's runner does
                names.update(self.zygote.given_names)
            if self.zygote.config["prelude"]:       # which has imported those of the zygote
                names.update(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)
            names.update(__name__=self.name, __builtins__=builtins, __file__="/tmp/main.py")
            exec(self.code, names)
            if self.function is not None:
                self.answer(names, arguments)
        except SystemExit as stop:
            if issubclass(type(stop.code), int):
                return int.__and__(stop.code, 255)
            if stop.code is not None:
                os.write(2, explain(stop))
                return 1
        except BaseException as error:
            os.write(2, explain(error))
            return 1
        return 0

    def answer(self, names: dict, arguments: bytes) -> None:
        """Call the function under test, write its value as JSON."""
        function, solution = names.get(self.function), names.get("Solution")
        if isinstance(solution, type) and hasattr(solution, self.function):
            function = getattr(solution(), self.function)
        if function is None:
            raise NameError(f"the program defines no function {self.function!r}")
        text = json.dumps(function(*json.loads(arguments)), default=plain).encode()
        with open(RESULT, "wb", closefd=False) as file:
            file.write(text)


def finish(output, module: str) -> int:
    """What Python does at its end: threads, exit functions, output, finalisers."""
    try:
        if _thread._count():
            threading._shutdown()
        if atexit._ncallbacks():        # both cost pages even if there is nothing to do
            atexit._run_exitfuncs()
        flush(sys.stdout)
        sys.stdout = output
        # Finalisers run now, with the program's globals intact, as at Python's own end. Without
        # collecting, a suspended generator in a cycle would be closed in the next test.
        sys.modules.pop(module, None)
        gc.collect()
        flush(output)
    except BaseException as error:
        os.write(2, explain(error))
        return 1
    return 0


class Snapshot:
    """State of the interpreter before any program; restore() puts it back after a test.

    Taken once, in the zygote: to copy all these references would cost a program 250 page faults. It
    covers what programs change in practice, not all that they could (an attribute of math, say).
    So a test that fails in company is repeated alone, and some tests always run alone: see
    verifier.Supervisor.
    """

    def __init__(self, zygote: Zygote):
        self.zygote = zygote
        self.draws = True       # the program may use random numbers
        self.of_sys, self.of_builtins = dict(vars(sys)), dict(vars(builtins))
        lists = [name for name, value in self.of_sys.items() if type(value) is list]
        self.lists = {name: list(self.of_sys[name]) for name in lists}      # path, argv, ...
        self.modules = dict(sys.modules)
        self.environment = dict(os.environ._data)
        self.recursion_limit = sys.getrecursionlimit()
        self.clear_caches = list(getattr(sys.modules["typing"], "_cleanups", ()))
        self.random_state = sys.modules["random"].getstate()
        self.numpy = sys.modules.get("numpy")
        if self.numpy:
            self.numpy_state = self.numpy.random.get_state()
            self.numpy_errors = self.numpy.geterr()
            self.numpy_print = self.numpy.get_printoptions()

    def restore(self) -> bool:
        """False if the process must not run another test."""
        try:
            sys.modules["__main__"] = self.modules["__main__"]
            sys.modules.pop("solution", None)
            if _thread._count() or has_children() or sys.modules != self.modules:
                return False
            if self.zygote.scratch_state() != self.zygote.clean:
                return False
            sys.settrace(None)
            sys.setprofile(None)
            put_back(vars(sys), self.of_sys)
            put_back(vars(builtins), self.of_builtins)
            for name, content in self.lists.items():
                getattr(sys, name)[:] = content
            sys.setrecursionlimit(self.recursion_limit)
            threading.stack_size(0)
            for clear in self.clear_caches:     # to typing's caches, 0.0 and -0.0 are one
                clear()
            self.restore_modules()
            self.zygote.close_all_but(TALK)
            open_standard_streams()
            return True
        except BaseException:
            return False

    def restore_modules(self) -> None:
        if os.environ._data != self.environment:
            os.environ.clear()
            for name, value in self.environment.items():
                os.environ[os.fsdecode(name)] = os.fsdecode(value)
        os.chdir(self.zygote.scratch)
        os.umask(0o022)
        if "decimal" in sys.modules:
            decimal = sys.modules["decimal"]
            decimal.setcontext(decimal.Context())
        if self.draws:
            sys.modules["random"].setstate(self.random_state)
        if self.numpy:
            if self.draws:
                self.numpy.random.set_state(self.numpy_state)
            self.numpy.seterr(**self.numpy_errors)
            self.numpy.set_printoptions(**self.numpy_print)


def put_back(names: dict, saved: dict) -> None:
    for name in names.keys() - saved.keys():
        del names[name]
    names.update(saved)


def has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def open_standard_streams() -> None:
    """As a fresh interpreter has them, with the mode that templates for fast input look at.

    Made before a test: in it they would be a third of its page faults.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        raw = FileIO(number, mode, closefd=False)
        raw.name = f"<{name}>"
        buffer = BufferedWriter(raw) if number else BufferedReader(raw)
        errors = "backslashreplace" if number == 2 else None
        stream = TextIOWrapper(buffer, "utf-8", errors, line_buffering=number == 2)
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush(stream) -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()


def plain(value):
    """For what JSON lacks: numpy's numbers and arrays are taken, anything else is no answer."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the function returned a {type(value).__name__}, which is no JSON value")


def explain(error: BaseException) -> bytes:
    """One line: where in the program, and what."""
    try:
        if issubclass(type(error), MemoryError):
            error.__traceback__ = None      # its frames hold what fills the memory
            return b"\nMemoryError"
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
    except OSError as error:        # the supervisor starts again without the layer that was refused
        os.write(int(sys.argv[2]), b"X" + str(error).encode())
        os._exit(1)
    zygote.serve()      # never returns: the warm interpreter does not load what follows


# -------------------------------------------------------------- outside: what the supervisor does

import re                                   # noqa: E402
import select                               # noqa: E402
import socket                               # noqa: E402
import subprocess                           # noqa: E402
from collections.abc import Iterator, Sequence      # noqa: E402
from dataclasses import dataclass           # noqa: E402


class Fault(Exception):
    """The machinery failed, not the program: start again, never score."""


class Refused(Exception):
    """The kernel does not give namespaces, or no image in them."""


@dataclass
class Allowance:
    """What a program may use. Its CPU and wall clock seconds are counted down as its tests run."""
    test_seconds: float = TEST_SECONDS
    cpu_seconds: float = PROGRAM_SECONDS
    wall_seconds: float = PATIENCE * PROGRAM_SECONDS
    memory: int = MEMORY_MB << 20               # bytes, of each process
    total_memory: int = TOTAL_MEMORY_MB << 20   # bytes, of all processes together
    output: int = OUTPUT_MB << 20               # bytes, of a test and of any file


@dataclass
class Result:
    """Of one test: "ended" (exit status 0) and its output; other statuses say what went wrong.

    "unclear" is one in company that must be repeated alone.
    """
    status: str
    message: str = ""
    output: str | None = None
    seconds: float = 0.0        # wall clock
    fresh: bool = True          # it ran in a process that had run nothing before


def memory_file(content: bytes = b"") -> int:
    """A new file in memory for each input and output.

    Nothing one test does to its descriptors reaches another, no pipe fills up, and no thread must
    empty it. Written by pwrite: reading starts at 0.
    """
    descriptor = os.memfd_create("sandbox")
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


def start_process(script: str, role: str, channel, *kept: int, **options) -> subprocess.Popen:
    """A clean interpreter that runs `script`, in a session of its own, out of ^C's reach."""
    environment = dict(PYTHONHASHSEED="0", PYTHONSAFEPATH="1", OPENBLAS_NUM_THREADS="1",
                       LC_ALL="C.UTF-8", MALLOC_ARENA_MAX="1")      # else a thread takes 64 MiB
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-B", os.path.abspath(script), role, str(channel.fileno())],
        env=environment, pass_fds=[channel.fileno(), *kept], start_new_session=True, cwd="/",
        stdin=subprocess.DEVNULL, **options)


def own_user_id() -> tuple[socket.socket, int]:
    """A user id that no other sandbox on this machine has.

    The lock is an abstract socket, which vanishes with this process.
    """
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


def failure(status: int, errors: str) -> Result:
    """Of a test whose process ended with this wait status and left these words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        number = signal.SIGKILL if number == LIKE_SIGKILL else number
        name = f"signal {number}"
        if number in signal.valid_signals():
            name = signal.Signals(number).name
        kind = "time_limit" if number == signal.SIGXCPU else "runtime_error"
        return Result(kind, f"killed by {name}")
    message = (errors.splitlines() or [""])[-1]
    if re.match(r"(line \d+: )?\w*MemoryError\b", message):
        return Result("memory_limit", message)
    return Result("runtime_error", message or f"exit status {os.WEXITSTATUS(status)}")


class Sandbox:
    """One zygote and the program in it."""

    def __init__(self, config: dict):
        self.config = dict(config)
        self.uid_lock, self.config["uid"] = own_user_id() if os.geteuid() == 0 else (None, None)
        try:
            self.report = self.start()
        except Refused as refusal:
            layers = [layer for layer in config["layers"] if layer != "namespaces"]
            self.config["layers"] = layers
            self.report = dict(self.start(), namespaces=f"refused: {refusal}")
        self.poll = select.poll()
        self.poll.register(self.control, select.POLLIN)
        # pid 1 of a namespace is the child of the process that entered it; without namespaces that
        # process is the zygote itself
        children = family(self.process.pid)
        self.zygote = children[0][0] if children else self.process.pid
        with open(f"/proc/{self.zygote}/statm") as file:
            self.own_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        # without a user id of its own, RLIMIT_NPROC counts all tasks of the user
        self.counts_processes = self.report["identity"] == "your user id"

    def start(self) -> dict[str, str]:
        isolated = "namespaces" in self.config["layers"]
        # used only if not isolated
        self.config["scratch"] = f"{self.config['tmp']}/verifier-{os.urandom(8).hex()}"
        self.config["user_tasks"] = 0 if isolated else count_tasks_of_user()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60.0)
        self.errors = memory_file()
        kept = [self.config["alive"]] + ([self.uid_lock.fileno()] if self.uid_lock else [])
        with theirs:
            self.process = start_process(__file__, "--zygote", theirs, *kept, stderr=self.errors,
                                         stdout=subprocess.DEVNULL)
        with self.or_fault():
            self.control.send(json.dumps(self.config).encode())
        while True:
            with self.or_fault():
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
        """In the namespace, root is root of this one and user 1 the sandbox's user id.

        Or root alone, in a container that has no such user id to give.
        """
        both = f"0 0 1\n1 {self.config['uid']} 1\n"
        for users, lines in ((b"2", both), (b"1", "0 0 1\n")):
            with contextlib.suppress(OSError):
                for kind in ("gid_map", "uid_map"):
                    with open(f"/proc/{pid}/{kind}", "w") as file:
                        file.write(lines)
                self.control.send(users)
                return
        self.control.send(b"1")     # neither: it will fail, and start again without namespaces

    # ---- one program

    def run(self, source: bytes, tests: Sequence[tuple[str, bool]], allowance: Allowance,
            function: str | None = None) -> Iterator[Result]:
        """Run a program on inputs; yield the Result of each, in their order.

        tests: (input, whether it runs alone). Ends early where the program process has ended: after
        a test that did not end well, or that left something behind. Closing the iterator kills what
        runs. Raises Fault.
        """
        files: list[tuple[int, int, int]] = []      # of the tests that were sent, in order
        self.begin(source, allowance, function)
        try:
            for n, (_, alone) in enumerate(tests):
                while n + len(files) < min(len(tests), n + TESTS_AHEAD):
                    sent = n + len(files)
                    files.append(self.send_test(*tests[sent], last=sent == len(tests) - 1))
                result, ends = self.await_test(files[0], alone, allowance)
                result.fresh = alone or n == 0 and result.status != "unclear"
                for descriptor in files.pop(0):
                    os.close(descriptor)
                yield result
                if ends:
                    return
        finally:
            for descriptor in (descriptor for three in files for descriptor in three):
                os.close(descriptor)
            self.end()

    def begin(self, source: bytes, allowance: Allowance, function: str | None) -> None:
        self.talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.poll.register(self.talk, select.POLLIN)
        flags = CALL if function is not None else 0
        # far above what is counted from outside: only if the supervisor does not get to look
        cpu_seconds = int(2 * allowance.cpu_seconds) + 5
        limits = BEGIN.pack(flags, allowance.memory, allowance.output, cpu_seconds)
        code = memory_file(source)
        self.ended: int | None = None       # wait status of the program process
        self.complaints = os.fstat(self.errors).st_size
        with theirs, self.or_fault():
            message = b"B" + limits + (function or "").encode()
            send_with_files(self.control, message, code, theirs.fileno())
        os.close(code)

    def send_test(self, text: str, alone: bool, last: bool) -> tuple[int, int, int]:
        given = memory_file(text.encode("utf-8", "surrogatepass"))
        files = given, memory_file(), memory_file()
        with contextlib.suppress(OSError):      # if the process is gone, await_test says why
            send_with_files(self.talk, TEST.pack(b"T", alone, last), *files)
        return files

    def await_test(self, files: tuple[int, int, int], alone: bool,
                   allowance: Allowance) -> tuple[Result, bool]:
        """The Result of the test that runs, and whether the program process has ended."""
        _, output, errors = files
        start = time.monotonic()
        message = self.next_message(allowance)
        seconds = spent = time.monotonic() - start
        allowance.wall_seconds -= seconds
        ends = True
        if isinstance(message, Result):
            result = message
        else:
            if len(message) == REPLY.size:
                _, status, inside, spent, ends = REPLY.unpack(message)
                seconds = min(max(inside, 0.0), seconds)    # without the time that messages take
            else:
                status = self.died()
            if ends:
                self.end()      # before anything is read: no process may be left that could write
            if message[:1] == b"C":
                explanation = message[1:].decode("utf-8", "replace").strip()
                result = Result("compile_error", explanation)
            elif not alone and len(message) != REPLY.size:
                # a test in company can end its process, or garble what that says
                result = Result("unclear", "its process said nothing of this test")
            else:
                # not after "C": on a busy machine `end` may itself kill what has said so and not
                # yet exited, and then the status is that of our own SIGKILL
                killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
                if killed and alone and self.report["seccomp"] == "active":
                    raise Fault("a process of the sandbox was killed from outside")
                result = self.result(status, output, errors, allowance)
        allowance.cpu_seconds -= max(0.0, spent)
        result.seconds = seconds
        return result, ends

    def died(self) -> int:
        """The wait status of a program process that has ended without a reply."""
        status = self.end()
        unconfined = os.WIFEXITED(status) and os.WEXITSTATUS(status) == UNCONFINED
        # model code can exit like that, but has no access to the zygote's error output
        if unconfined and os.fstat(self.errors).st_size > self.complaints:
            raise Fault(f"a program process failed: {last_text(self.errors)}")
        return status

    def result(self, status: int, output: int, errors: int, allowance: Allowance) -> Result:
        size = os.fstat(output).st_size
        if size >= allowance.output:
            return Result("output_limit", f"more than {allowance.output >> 20} MiB of output")
        if status != 0:
            return failure(status, last_text(errors))
        return Result("ended", output=os.pread(output, size, 0).decode("utf-8", "replace"))

    def next_message(self, allowance: Allowance) -> bytes | Result:
        """What the program process says next (empty: it has died), or the limit that it broke.

        A test is late when it has used its seconds of CPU time, or PATIENCE times as many of wall
        clock: no busy machine makes a right program late. The CPU time before the first look is
        not counted, since the process may have run other tests before.
        """
        start = time.monotonic()
        limit = min(allowance.test_seconds, allowance.cpu_seconds)
        deadline = start + min(PATIENCE * allowance.test_seconds, allowance.wall_seconds)
        pause, cpu_before = WATCH_SECONDS, None
        while True:
            for descriptor, _ in self.poll.poll(pause * 1000):
                if descriptor == self.control.fileno():
                    raise Fault(f"the sandbox was lost: {last_text(self.errors)}")
                return self.last_words()
            now, effort, alive = time.monotonic(), time.process_time(), family(self.zygote)
            cpu = sum(cpu for _, _, cpu in alive)
            if cpu_before is None:
                cpu_before = cpu
            if now >= deadline or now >= start + limit and cpu - cpu_before >= limit:
                return Result("time_limit", f"more than {limit:g} s")
            trouble = self.trouble(alive, allowance)
            if trouble is not None:
                return trouble
            # looking takes at most 5 % of a CPU
            pause = max(WATCH_SECONDS, 20 * (time.process_time() - effort))

    def trouble(self, alive: list, allowance: Allowance) -> Result | None:
        """A limit that no rlimit enforces and that the living processes break."""
        limit = allowance.total_memory
        if self.held_bytes(alive) > limit:
            message = f"all processes together hold more than {limit >> 20} MiB"
            return Result("memory_limit", message)
        if self.counts_processes and len(alive) > PROCESSES + 1:
            return Result("runtime_error", f"more than {PROCESSES} processes")
        isolated = self.report["namespaces"].startswith("active")
        if not isolated and directory_is_full(self.config["scratch"]):
            return Result("runtime_error", "the scratch directory is full")
        return None

    def held_bytes(self, alive: list) -> int:
        """Memory that the processes hold, without what the zygote shares with them.

        Of what many share, each has its part, where the kernel says so (to root alone).
        """
        total = 0
        for pid, resident, _ in alive:
            held = max(0, resident - self.own_bytes)
            if len(alive) > 2:
                path = f"/proc/{pid}/smaps_rollup"
                with contextlib.suppress(OSError, IndexError), open(path, "rb", 0) as file:
                    held = int(file.read().split(b"Pss:")[1].split()[0]) << 10
            total += held
        return total

    def last_words(self) -> bytes:
        for _ in range(2):      # if it ended with unread messages, the first call raises
            with contextlib.suppress(OSError):
                return self.talk.recv(1024)
        return b""

    def end(self) -> int:
        """Kill what there is of the program, wait until all is clean; return its wait status."""
        if self.ended is None:
            self.poll.unregister(self.talk)
            self.talk.close()
            with self.or_fault():
                self.control.send(b"K")
                self.ended = struct.unpack("<xi", self.control.recv(16))[0]
        return self.ended

    @contextlib.contextmanager
    def or_fault(self):
        try:
            yield
        except (OSError, struct.error) as error:
            raise Fault(f"the sandbox was lost: {last_text(self.errors) or error}") from None

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.errors)
        with contextlib.suppress(FileNotFoundError):    # the zygote removes it, if it has the time
            empty_directory(self.config["scratch"])
            os.rmdir(self.config["scratch"])


def directory_is_full(path: str) -> bool:
    """Does it hold more than the scratch in memory could? Stops counting there."""
    files, size, stack = 0, 0, [path]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                files += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                if files > SCRATCH_FILES or size > SCRATCH_MB << 20:
                    return True
    return False
