"""V(x, y): run one program against its tests inside a sandbox, and say whether it passed (Section 3.2, Appendix C.5).

    with Verifier(workers=8) as verifier:
        verdicts = verifier.judge([{"code": "print(input())", "tests": [{"input": "1\n", "output": "1\n"}]}])
        future = verifier.submit(item)          # the same, one at a time: a concurrent.futures.Future of a Verdict

    python verifier.py judge FILE.jsonl --workers 8        # one verdict a line, in the order of FILE
    python verifier.py doctor                              # which protections hold on this machine: tried, not guessed

An item has "code" and "tests" ([{"input", "output"}]) and may have "fn_name" (the tests are then calls: input is a JSON
list of arguments, output a JSON value), "time_limit" (seconds a test), "memory_mb", "compare" ("lines" or "tokens"),
"float_tolerance" and "want_outputs". A program is accepted if every test was run, ended normally (exit status 0) and
printed or returned the right thing; the first failing test ends it.

Who is who. Model code never runs in, nor is forked from, your process:

    caller        your process: one thread for each worker, which only sends items and receives verdicts
    supervisor    one process a worker: holds the expected outputs, compares, keeps the time
    zygote        a clean, warm interpreter inside the sandbox (a second one with numpy); only file descriptors reach it
    program       forked from the zygote for each program: takes the last privileges away, compiles
    test          forked from the program process for each test: runs model code, and dies with all it started

`mode="strict"` forks for each test. `mode="batch"` lets the program process itself run the tests of a *tame* program, one
after another (no fork: three times faster). Tame is decided before it runs: its code names nothing through which state
could outlive a test or the loop around it could be reached; all other programs are judged strictly, and so is the first
test that does not pass there. The verdicts are the same.

What is covered, in layers, each used where the kernel allows it and tried at start:

    namespaces    user, mount, pid, net, ipc, uts, cgroup: no host process, no network, and a read-only root that holds
                  the standard library, numpy and the shared objects of both, beside a scratch directory in memory
    Landlock      files outside that list, TCP, signals and abstract sockets out of the sandbox
    seccomp       a list of allowed system calls; no exec, no socket, no ptrace, no mount, nothing newer than the list
    identity      a user id of the slot's own (as root), no capabilities, no_new_privs
    limits        of Table 11 and below, by rlimits; of all processes together by the supervisor, every 50 ms

    tier A  namespaces and seccomp            tier B  no namespaces: own user id, Landlock, seccomp
    tier C  Landlock and seccomp, user id of the caller               tier D  less: refused unless min_tier="D" says so

Not covered: bugs of the kernel (put a virtual machine around it for code that is truly hostile), timing channels, the
memory of pipes beyond descriptors x processes, and in tiers B and C the existence of files, and scratch on disk whose
size is only watched. A program can read the inputs it is tested on; expected outputs never enter the sandbox.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time

# ------------------------------------------------------------------------------------------------------------- limits

TEST_SECONDS = 10.0         # wall clock of one test (Table 11); "time_limit" of an item overrides it
PROGRAM_SECONDS = 120.0     # all tests of one program together
MEMORY_MB = 256             # address space of one process (Table 11); "memory_mb" overrides it
TOTAL_MEMORY_MB = 384       # resident memory of all processes of a program: 64 times the above would be 16 GiB
PROCESSES = 64              # Table 11
OUTPUT_MB = 8               # a file or an output; more where twice the expected output is more
SCRATCH_MB = 16
SCRATCH_FILES = 1024
OPEN_FILES = 64
STACK_MB = 64
WATCH_SECONDS = 0.05        # how often the supervisor looks at the memory of a running program
DEPTH = 4                   # tests sent ahead, so that the program process never waits for the supervisor

TIERS = "ABCD"
LAYERS = ("namespaces", "landlock", "seccomp")

# Message from the supervisor to the zygote: flags, address space, file size, processor seconds, then fn_name.
_BEGIN = struct.Struct("<BQQQ")
_BATCH, _CALL = 1, 2
# Reply of the program process for one test: wait status, seconds, flags.
_REPLY = struct.Struct("<cidB")
_FRESH, _SPENT = 1, 2       # ran in a fresh process; the program process is spent (dirty scratch or changed modules)
_SETUP_FAILED = 125         # exit status of a program process that could not be confined
_TALK = 3                   # its descriptor of the socket to the supervisor; in a call test, that of the result
_STDLIB_FD, _SITE_FD = 50, 51     # tier B under a directory that only root may enter: the libraries by descriptor

# ------------------------------------------------------------------------------- inside the sandbox: the kernel's layers

# Allowed system calls. What Python, numpy, threads, multiprocessing (fork) and asyncio use; left out are execve, socket,
# bind, connect, ptrace, process_vm_*, mount and its kin, unshare, setns, set*id, capset, keyctl, bpf, perf, io_uring,
# memfd_create, userfaultfd, System V and POSIX queues, mlock, inotify, xattr, mknod, setpriority, pidfd_*, seccomp,
# landlock_*. clone3 is out too: glibc falls back to clone, whose flags a filter can read. An unlisted call is ENOSYS.
_ALLOWED_CALLS = {
    "x86_64": "0-28 32-40 44-48 51-58 60-63 72-91 95-100 102 104 107-108 110-111 115 118 120-121 124 127-128 130-132 "
              "137-138 140 143 145-147 157-158 160 186 200-204 213 217-219 221-226 228-235 247 257-258 262-271 273-274 "
              "280-281 284-285 290-293 295-296 302 309 316 318 324 326-328 332 334 436 439 441 449 452",
    "aarch64": "17 19-25 29 32 34-38 43-50 52-53 56-57 59 61-73 78-80 82-83 88 93-96 98-103 107-111 113-115 120-126 "
               "128-137 139 141 148 150 153 155-156 158 160 163-169 172-179 199 204-212 214-216 220 222-223 226-227 "
               "232-233 260-261 276 278 283 285-287 291 293 436 439 441 449 452",
}
_CALL_NUMBERS = {   # those whose arguments are looked at, or that differ by tier
    "x86_64": dict(arch=0xC000003E, seccomp=317, clone=56, socketpair=53, ioctl=16, prlimit64=302, sched_setaffinity=203,
                   setsid=112, setpgid=109, kill=62, tkill=200, tgkill=234),
    "aarch64": dict(arch=0xC00000B7, seccomp=277, clone=220, socketpair=199, ioctl=29, prlimit64=261,
                    sched_setaffinity=122, setsid=157, setpgid=154, kill=129, tkill=130,
                    tgkill=131),
}


def _seccomp_program(machine: str, own_pid_namespace: bool, scoped: bool) -> bytes:
    """The filter as classic BPF: a binary search over intervals of call numbers, about 70 ns at its deepest."""
    number = _CALL_NUMBERS[machine]
    allowed = set()
    for part in _ALLOWED_CALLS[machine].split():
        first, _, last = part.partition("-")
        allowed.update(range(int(first), int(last or first) + 1))
    if own_pid_namespace:
        allowed |= {number["setsid"], number["setpgid"]}        # elsewhere the process group is what is killed
    elif not scoped:
        allowed -= {number["kill"], number["tkill"], number["tgkill"]}      # nothing else would protect the caller
    ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38, 0x80000000
    code: list[list[int]] = []

    def emit(op, k, yes=0, no=0):
        code.append([op, yes, no, k])

    LOAD, RETURN, EQUAL, AT_LEAST, ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
    emit(LOAD, 4), emit(EQUAL, number["arch"], 1, 0), emit(RETURN, KILL), emit(LOAD, 0)
    # clone without CLONE_NEW*; socketpair of AF_UNIX alone (asyncio needs it); limits and affinity of oneself alone
    emit(EQUAL, number["clone"], 0, 4), emit(LOAD, 16), emit(ANY_BIT, 0x7E020000, 0, 1), emit(RETURN, EPERM)
    emit(RETURN, ALLOW)
    for name, argument in (("socketpair", 1), ("prlimit64", 0), ("sched_setaffinity", 0)):
        emit(EQUAL, number[name], 0, 4), emit(LOAD, 16), emit(EQUAL, argument, 1, 0), emit(RETURN, EPERM)
        emit(RETURN, ALLOW)
    # ioctl: no TIOCSTI, no TIOCLINUX (they type into a terminal)
    emit(EQUAL, number["ioctl"], 0, 5), emit(LOAD, 24), emit(EQUAL, 0x5412, 1, 0), emit(EQUAL, 0x541C, 0, 1)
    emit(RETURN, EPERM), emit(RETURN, ALLOW)
    edges = [n for n in range(1, max(allowed) + 2) if (n in allowed) != (n - 1 in allowed)]
    starts = [0] + edges

    def search(low, high):
        if high - low == 1:
            return emit(RETURN, ALLOW if starts[low] in allowed else ENOSYS)
        middle = (low + high) // 2
        emit(AT_LEAST, starts[middle])
        here = len(code) - 1
        search(low, middle)
        code[here][1] = len(code) - here - 1
        assert code[here][1] < 256
        search(middle, high)

    search(0, len(starts))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Kernel:
    """What the standard library does not offer. Every function and structure is made before the first fork: the first use of
    one through ctypes costs 150 us of page faults, in each child anew."""

    def __init__(self):
        import ctypes
        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        # os.fork runs the hooks of random and threading, which more than double what a child costs
        self.fork = ctypes.PyDLL(None).fork

    def call(self, name: str, *arguments) -> int:
        """One libc function; OSError with its errno where it fails."""
        result = getattr(self.libc, name)(*arguments)
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result

    def syscall(self, name: str, *arguments) -> int:
        result = self.libc.syscall(*arguments)
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result

    def mount(self, source, target, kind, flags, data=None):
        encode = lambda text: None if text is None else text.encode()   # noqa: E731
        try:
            self.call("mount", encode(source), encode(target), encode(kind), self.ctypes.c_ulong(flags), encode(data))
        except OSError as error:
            raise OSError(error.errno, f"mount {target}: {os.strerror(error.errno)}") from None


_READ_FILE, _READ_DIR = 1 << 2, 1 << 3          # Landlock rights
_NO_RIGHTS_IN_SCRATCH = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11      # execute, make device or socket


def _landlock_ruleset(kernel: _Kernel, abi: int, readable: list[str], listable: list[str], scratch: str) -> int:
    """A ruleset: `readable` trees, `listable` directories (entries only), and everything but execution in `scratch`."""
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("<QQQ", every, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)     # files, TCP, signals + abstract
    attributes = attributes[:24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = kernel.syscall("landlock_create_ruleset", 444, attributes, len(attributes), 0)

    def allow(path, rights):
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if not os.path.isdir(path):
            rights &= 1 << 0 | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15
        kernel.syscall(f"landlock_add_rule {path}", 445, ruleset, 1, struct.pack("<Qi", rights & every, beneath), 0)
        os.close(beneath)

    for path in readable:
        allow(path, _READ_FILE | _READ_DIR)
    for path in listable:
        allow(path, _READ_DIR)
    for device in ("null", "zero", "full"):
        allow("/dev/" + device, _READ_FILE | 1 << 1)
    for device in ("random", "urandom"):
        allow("/dev/" + device, _READ_FILE)
    allow(scratch, every & ~_NO_RIGHTS_IN_SCRATCH)
    return ruleset


_NEW_USER, _NEW_REST = 0x10000000, 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2


def _inside(path: str) -> str:
    """Where a file of the host stands in the image: at its own path, unless the scratch directory covers that."""
    return "/host" + path if path.startswith("/tmp/") else path


def _build_image(kernel: _Kernel, config: dict) -> None:
    """Swap the root for an empty one into which only `config["readable"]` is bound, read-only. No directory of the host is
    touched, so none is left behind."""
    hide = _NOSUID | _NODEV
    kernel.mount("none", "/", None, _REC | _PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", hide, "size=1m,mode=755")
    os.mkdir("/tmp/new"), os.mkdir("/tmp/old")
    kernel.mount("/tmp/new", "/tmp/new", None, _BIND)
    kernel.call("pivot_root", b"/tmp", b"/tmp/old")     # so that what lies under the host's /tmp can still be bound
    os.chdir("/")

    def bind(path, read_only=True):
        source, target = "/old" + path, "/new" + _inside(path)
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(source, target, None, _BIND | _REC)
        if read_only:       # mount_setattr only adds flags, so it never trips over those a container has locked
            kernel.syscall("mount_setattr " + path, 442, -100, target.encode(), 0,
                           struct.pack("<QQQQ", _RDONLY | _NOSUID | _NODEV, 0, 0, 0), 32)

    for link, target in config["links"]:
        os.makedirs("/new/" + target.lstrip("/"), exist_ok=True)
        os.symlink(target, "/new" + link)
    bind(config["stdlib"], read_only=False)
    for path in config["masked"]:       # third-party packages that live inside the standard library's directory
        kernel.mount("tmpfs", "/new" + _inside(path), "tmpfs", hide, "size=64k,mode=755")
    for path in config["readable"]:
        bind(path)
    for link, target in config["aliases"]:
        os.symlink(_inside(target), "/new" + _inside(link))
    kernel.syscall("mount_setattr stdlib", 442, -100, ("/new" + _inside(config["stdlib"])).encode(), 0x8000,
                   struct.pack("<QQQQ", _RDONLY | _NOSUID | _NODEV, 0, 0, 0), 32)
    for name in ("null", "zero", "full", "random", "urandom"):
        bind("/dev/" + name, read_only=False)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", "/new/dev/" + name)
    os.makedirs("/new/box/tmp"), os.mkdir("/new/proc")
    os.symlink("/box/tmp", "/new/tmp"), os.symlink("/box/tmp", "/new/dev/shm")
    _mount_scratch(kernel, config, "/new/box/tmp")
    try:
        kernel.mount("proc", "/new/proc", "proc", hide | _NOEXEC, "subset=pid,hidepid=2")
    except OSError:
        pass        # a container with a masked /proc refuses a clean one: then there is no /dev/stdin by name
    kernel.call("umount2", b"/old", _DETACH)
    os.chdir("/new")
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", _DETACH)
    os.chdir("/")
    kernel.mount("none", "/", None, _BIND | _REMOUNT | _RDONLY | hide)
    kernel.libc.sethostname(b"sandbox", 7)


def _mount_scratch(kernel: _Kernel, config: dict, where: str) -> None:
    kernel.mount("tmpfs", where, "tmpfs", _NOSUID | _NODEV | _NOEXEC,
                 f"size={config['scratch_mb']}m,nr_inodes={SCRATCH_FILES},mode=1777")


def _empty_directory(path: str) -> None:
    """Remove all that is in `path`, following no link, at any depth and mode: subdirectories are first moved to the top, so
    neither recursion nor the length of a path is ever a matter."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        while entries := os.listdir(top):
            for name in entries:
                try:
                    os.unlink(name, dir_fd=top)
                    continue
                except (IsADirectoryError, PermissionError):
                    pass
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                for entry in os.scandir(inner):
                    if entry.is_dir(follow_symlinks=False):
                        os.chmod(entry.name, 0o700, dir_fd=inner)       # its ".." changes, which needs write access
                        os.rename(entry.name, os.urandom(12).hex(), src_dir_fd=inner, dst_dir_fd=top)
                    else:
                        os.unlink(entry.name, dir_fd=inner)
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


# ------------------------------------------------------------------------------------ inside the sandbox: the zygote

class _Zygote:
    """The warm interpreter. Everything it runs is ours; inputs, outputs and expected outputs pass it by as descriptors."""

    def __init__(self, control_fd: int):
        import _socket
        self.control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control_fd)
        self.config = config = json.loads(self.control.recv(1 << 20))
        self.report = {layer: "off" for layer in LAYERS}
        self.kernel = _Kernel()
        self.test_uid: int | None = None        # the user id that programs change to, as seen here
        os.environ.clear()
        os.environ.update(HOME="/tmp", PATH="/nonexistent", LC_ALL="C.UTF-8", OPENBLAS_NUM_THREADS="1",
                          OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")     # two OpenBLAS threads abort in 256 MiB
        # pid 1 is immune to signals it does not handle, and Python handles this one
        import signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.isolated = "namespaces" in config["layers"]
        if self.isolated:
            self._enter_namespaces()
            _build_image(self.kernel, config)
            for key in ("stdlib", "site"):
                config[key] = config[key] and _inside(config[key])
            config["readable"] = [_inside(path) for path in config["readable"]]
            self.report["namespaces"] = "active"
            self.scratch, watched = "/tmp", "/box"      # the rule stands on /box: it outlives each scratch mounted below
        else:
            self.scratch = watched = config["scratch"]
            if os.geteuid() == 0 and config["uid"]:
                self.test_uid = config["uid"]
                os.chown(self.scratch, self.test_uid, self.test_uid)
        self._libraries()
        self._warm_up()
        self._landlock(watched)
        self._seccomp()
        self._limits()
        if self.test_uid is not None:
            os.setgroups([])
            self.report["identity"] = "active"
        elif self.isolated:
            self.report["identity"] = "capabilities dropped"
        else:
            self.report["identity"] = "user id of the caller"
        header, nothing = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", *[0] * 6)
        self.no_capabilities = (self.kernel.ctypes.create_string_buffer(header, 8),
                                self.kernel.ctypes.create_string_buffer(nothing, 24))
        # A program process can end all others of its test by kill(-1) only where that cannot reach the caller.
        self.sweeps = self.isolated or self.test_uid is not None or self.scoped
        self.clean = self._scratch_state()

    def _enter_namespaces(self) -> None:
        kernel, root = self.kernel, os.geteuid() == 0
        uid, gid = os.geteuid(), os.getegid()
        try:
            kernel.call("unshare", _NEW_USER | _NEW_REST)
        except OSError:
            if not root:
                raise
            kernel.call("unshare", _NEW_REST)       # real root where user namespaces are switched off
            self.test_uid = self.config["uid"] or None
        else:
            if root:        # RLIMIT_NPROC never binds root, not even root of a namespace: a second user id is needed,
                self.control.send(b"M" + struct.pack("i", os.getpid()))      # which only the parent namespace can map
                self.test_uid = 1 if self.control.recv(1) == b"2" else None
            else:
                for name, line in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
                    with open("/proc/self/" + name, "w") as file:
                        file.write(line)
        child = os.fork()       # pid 1 of the new namespace: when it dies, all in there die
        if child:
            self.control.close()
            os.waitpid(child, 0)
            os._exit(1)
        kernel.call("prctl", 1, 9, 0, 0, 0)     # PR_SET_PDEATHSIG, SIGKILL

    def _libraries(self) -> None:
        """sys.path: the standard library and numpy's directory. In tier B under a directory that the test's user id may not
        enter (/root/.pyenv), both are reached through descriptors that stay open."""
        stdlib, site = self.config["stdlib"], self.config["site"]
        if not self.isolated and self.test_uid is not None:
            child = os.fork()
            if child == 0:
                os.setresuid(self.test_uid, self.test_uid, self.test_uid)
                os._exit(0 if os.access(stdlib + "/os.py", os.R_OK) else 1)
            if os.waitpid(child, 0)[1]:
                for path, fd in ((stdlib, _STDLIB_FD), (site, _SITE_FD)):
                    if path:
                        opened = os.open(path, os.O_PATH | os.O_DIRECTORY)
                        os.dup2(opened, fd)
                        os.close(opened)
                for module in list(sys.modules.values()):
                    for n, place in enumerate(getattr(module, "__path__", ())):
                        module.__path__[n] = place.replace(stdlib, f"/proc/self/fd/{_STDLIB_FD}")
                stdlib, site = f"/proc/self/fd/{_STDLIB_FD}", site and f"/proc/self/fd/{_SITE_FD}"
        sys.path[:] = [stdlib, stdlib + "/lib-dynload"] + ([site] if site and (self.isolated or self.config["numpy"]) else [])
        sys.path_importer_cache.clear()

    def _warm_up(self) -> None:
        import atexit, array, bisect, builtins, cmath, collections, copy, datetime, functools, gc, heapq, io    # noqa: E401
        import itertools, math, operator, queue, random, re, string, threading, types, typing    # noqa: E401, F401
        from _sitebuiltins import Quitter
        builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")     # site.py is not run (-S)
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)       # no judge has the limit of 4,300 digits
        if self.config["numpy"]:
            import numpy, numpy.fft, numpy.linalg, numpy.random     # noqa: E401
            self.numpy_random = numpy.random
            numpy.random.seed(0)
            self.numpy_state = numpy.random.get_state()
        random.seed(0)
        self.random_state, self.recursion_limit = random.getstate(), sys.getrecursionlimit()
        self.prelude = _prelude()
        self.tameness = _Tameness()
        sys.argv[:] = ["main.py"]
        sys.path_importer_cache.clear()
        gc.collect()
        gc.freeze()

    def _landlock(self, scratch: str) -> None:
        self.ruleset, self.scoped = -1, False
        if "landlock" not in self.config["layers"]:
            return
        try:
            abi = self.kernel.syscall("landlock", 444, None, 0, 1)
            stdlib, site = self.config["stdlib"], self.config["site"]
            masked = set(self.config["masked"])
            readable = self.config["readable"]
            if self.isolated:
                readable, listable = readable + [stdlib], ["/", site] if site else ["/"]
            else:       # Landlock cannot take the third-party packages out of a tree it allows
                readable = readable + [e.path for e in os.scandir(stdlib) if e.path not in masked]
                listable = [stdlib]
            ruleset = _landlock_ruleset(self.kernel, abi, readable, listable, scratch)
            self.ruleset, self.scoped = os.dup2(ruleset, 40), abi >= 6
            os.close(ruleset)
            self.report["landlock"] = "active"
        except OSError as error:
            self.report["landlock"] = f"refused: {error.strerror}"

    def _seccomp(self) -> None:
        self.filter = None
        machine = os.uname().machine
        if "seccomp" not in self.config["layers"]:
            return
        if machine not in _ALLOWED_CALLS:
            self.report["seccomp"] = f"refused: no list of system calls for {machine}"
            return
        ctypes = self.kernel.ctypes
        program = _seccomp_program(machine, self.isolated, self.scoped)
        self.filter_bytes = ctypes.create_string_buffer(program, len(program))

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
        self.filter = Program(len(program) // 8, ctypes.addressof(self.filter_bytes))
        number, pointer = _CALL_NUMBERS[machine]["seccomp"], ctypes.byref(self.filter)
        # flag 4: leave speculation alone, which kernels before 5.16 slow down for filtered processes
        self.install_filter = lambda: self.kernel.syscall("seccomp", number, 1, 4, pointer)
        child = os.fork()       # tried, not guessed
        if child == 0:
            try:
                self.kernel.call("prctl", 38, 1, 0, 0, 0)
                self.install_filter()
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1] == 0:
            self.report["seccomp"] = "active"
        else:
            self.filter, self.report["seccomp"] = None, "refused: the kernel did not take the filter"

    def _limits(self) -> None:
        import resource as r
        self.kernel.call("prctl", 4, 0, 0, 0, 0)        # PR_SET_DUMPABLE off: no ptrace, no /proc/1/mem
        self.kernel.call("prctl", 36, 1, 0, 0, 0)       # PR_SET_CHILD_SUBREAPER: nothing slips out of the tree
        processes = self.config["processes"] + (1 if self.test_uid is not None else 3)      # ours beside the test's
        if not self.isolated and self.test_uid is None:     # the user's own tasks count too: room, and the supervisor counts
            processes += self.config["user_tasks"] + 256
        for limit, value in ((r.RLIMIT_CORE, 0), (r.RLIMIT_NOFILE, OPEN_FILES), (r.RLIMIT_STACK, STACK_MB << 20),
                             (r.RLIMIT_MEMLOCK, 0), (r.RLIMIT_MSGQUEUE, 0), (r.RLIMIT_SIGPENDING, 256),
                             (r.RLIMIT_NPROC, processes)):
            hard = r.getrlimit(limit)[1]
            value = value if hard == r.RLIM_INFINITY else min(value, hard)
            r.setrlimit(limit, (value, value))

    def _scratch_state(self):
        state = os.stat(self.scratch)       # ctime cannot be set back
        return state.st_mode, state.st_uid, state.st_nlink, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    # -- serving

    def serve(self) -> None:
        import _socket
        room = _socket.CMSG_SPACE(12)
        child = 0
        self.control.send(b"R" + json.dumps(self.report).encode())
        while True:
            message, ancillary, _, _ = self.control.recvmsg(4096, room)
            if message[:1] == b"B":
                code, talk, errors = struct.unpack("3i", ancillary[0][2])
                child = self.kernel.fork()
                if child == 0:
                    os.setpgid(0, 0)
                    try:
                        _Program(self, message[1:], code, talk, errors).serve()
                    except BaseException as error:
                        os.write(2, _explain(error))
                    finally:
                        os._exit(_SETUP_FAILED)
                try:
                    os.setpgid(child, child)        # in both, whichever runs first: the group is what is killed
                except OSError:
                    assert child
                for fd in (code, talk, errors):
                    os.close(fd)
            else:       # "K": end the program; nothing: the supervisor is gone
                status = self._clean_up(child) if child else 0
                child = 0
                if not message:
                    os._exit(0)
                self.control.send(b"D" + struct.pack("i", status))

    def _clean_up(self, program: int) -> int:
        """Kill and reap all that a program left, give back an empty scratch; the wait status of its process."""
        status = 0
        while True:
            try:
                if self.isolated:
                    os.kill(-1, 9)
                else:
                    os.killpg(program, 9)
            except (ProcessLookupError, PermissionError):
                pass
            try:
                pid, ended = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            if pid == program:
                status = ended
        if self._scratch_state() != self.clean:
            if self.isolated:
                self.kernel.call("umount2", b"/box/tmp", _DETACH)
                _mount_scratch(self.kernel, self.config, "/box/tmp")
            else:
                os.chmod(self.scratch, 0o700)
                _empty_directory(self.scratch)
            self.clean = self._scratch_state()
        return status


def _prelude() -> dict:
    """The names that LeetCode-style solutions use without importing them; builtins are never shadowed."""
    import bisect, builtins, collections, copy, functools, heapq, itertools, math, operator, random, re, string    # noqa: E401
    import datetime, typing     # noqa: E401
    names: dict = {}
    for module in (typing, string, math, random, operator, itertools, functools, copy, bisect, heapq, datetime, collections):
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        names.update((name, getattr(module, name)) for name in public)
        names[module.__name__] = module
    names.update(re=re, sys=sys, datetime=datetime.datetime)
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


# -------------------------------------------------------------------------------- inside the sandbox: which code is tame

_TAME_MODULES = frozenset("""__future__ array bisect cmath collections collections.abc copy dataclasses enum fractions functools
heapq itertools math numbers numpy operator queue random re statistics string sys time typing""".split())
_TAME_SYS = frozenset("""stdin stdout stderr exit maxsize setrecursionlimit getrecursionlimit version version_info byteorder
float_info int_info getsizeof maxunicode hexversion platform argv implementation""".split())
_WILD_NAMES = frozenset("""exec eval compile open globals locals vars getattr setattr delattr breakpoint help memoryview
attrgetter methodcaller update_wrapper wraps overload register get_type_hints ForwardRef Formatter get_field singledispatch
tb_frame tb_next with_traceback f_back f_globals f_locals f_builtins f_code gi_frame gi_code cr_frame cr_code ag_frame ag_code
ctypes ctypeslib testing load save savez memmap fromfile tofile lib core as_strided f2py distutils seterr seterrcall setbufsize
set_printoptions set_string_function sctypeDict typecodes mtrand bit_generator _core""".split())
_TAME_DUNDERS = frozenset(f"__{name}__" for name in """name main module qualname doc annotations annotate annotate_func
conditional_annotations static_attributes firstlineno classcell classdict classdictcell type_params slots match_args init new
post_init repr str hash bool len iter next reversed contains getitem setitem delitem missing call enter exit lt le gt ge eq ne
add radd iadd sub rsub isub mul rmul imul truediv rtruediv itruediv floordiv rfloordiv ifloordiv mod rmod imod pow rpow ipow
matmul rmatmul and rand iand or ror ior xor rxor ixor lshift rlshift rshift rrshift neg pos abs invert int float index round
floor ceil trunc divmod format copy deepcopy future""".split())


class _Tameness:
    """Can the tests of a program share one process? Yes if its code mentions nothing by which state could outlive a test or
    the loop around it could be reached: no module outside a list, no private attribute of those, no name like eval, open or
    __dict__, no attribute stored under a name that the modules have. What can still be stored (a new attribute on a shared
    class) is seen by counting their entries after each test. The word of a program is never taken: only its names count."""

    def __init__(self):
        names: set[str] = set()
        for module in _TAME_MODULES & sys.modules.keys():
            names.update(vars(sys.modules[module]))
        self.wild = _WILD_NAMES | {n for n in vars(sys) if n not in _TAME_SYS} | {
            n for n in names if n.startswith("_") and n != "_"}
        self.shared, self.stored_before = self._shared_dictionaries(), set()
        for entries in self.shared:
            self.stored_before.update(entries)
        self.stored_before -= {"stdin", "stdout", "stderr"}       # made anew for each test
        import opcode
        self.store, self.delete = opcode.opmap["STORE_ATTR"], opcode.opmap["DELETE_ATTR"]
        self.importing, self.extended = opcode.opmap["IMPORT_NAME"], opcode.opmap["EXTENDED_ARG"]

    def _shared_dictionaries(self) -> list:
        """The dictionaries of the modules a tame program may import, and of the classes and functions in them."""
        found = {}
        for module in _TAME_MODULES & sys.modules.keys():
            found[module] = vars(sys.modules[module])
            for thing in list(found[module].values()):
                if isinstance(thing, type) and thing.__flags__ & 1 << 9 or type(thing) is type(_prelude):
                    found[id(thing)] = vars(thing)
        return list(found.values())

    def look(self, code) -> tuple[bool, set[str], set[str]]:
        """(tame?, modules imported, attribute names stored)"""
        tame, modules, stored = True, set(), set()
        stack = [code]
        while stack:
            code = stack.pop()
            stack.extend(c for c in code.co_consts if type(c) is type(code))
            names, operations = code.co_names, code.co_code[::2]
            for name in names:
                if name in self.wild or name[:2] == "__" and name not in _TAME_DUNDERS:
                    tame = False
            if self.delete in operations:
                tame = False
            if self.store in operations or self.importing in operations:
                high, arguments = 0, code.co_code[1::2]
                for operation, argument in zip(operations, arguments):
                    if operation == self.extended:
                        high = (high | argument) << 8
                        continue
                    if operation == self.store:
                        stored.add(names[high | argument])
                    elif operation == self.importing:
                        modules.add(names[high | argument])
                    high = 0
        return tame and modules <= _TAME_MODULES and not stored & self.stored_before, modules, stored

    def entries(self) -> int:
        return sum(map(len, self.shared))


# ------------------------------------------------------------------------------- inside the sandbox: one program, its tests

class _Program:
    """The process of one program: gives up what it can, compiles, then answers one message a test. In strict mode model code
    runs only in its children."""

    def __init__(self, zygote: _Zygote, message: bytes, code_fd: int, talk_fd: int, error_fd: int):
        import _socket, resource        # noqa: E401
        self.zygote = zygote
        flags, memory, file_size, cpu = _BEGIN.unpack_from(message)
        self.name = message[_BEGIN.size:].decode() if flags & _CALL else None
        self.batch = bool(flags & _BATCH)
        source = os.pread(code_fd, os.fstat(code_fd).st_size, 0)
        os.dup2(error_fd, 2)
        os.dup2(talk_fd, _TALK)
        os.chdir(zygote.scratch)
        for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size), (resource.RLIMIT_CPU, cpu)):
            resource.setrlimit(limit, (value, value))
        kernel, uid = zygote.kernel, zygote.test_uid
        if uid is not None:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        elif zygote.isolated:
            kernel.call("capset", zygote.no_capabilities[0], zygote.no_capabilities[1])
        kernel.call("prctl", 38, 1, 0, 0, 0)        # PR_SET_NO_NEW_PRIVS
        kernel.call("prctl", 4, 0, 0, 0, 0)
        kernel.call("prctl", 36, 1, 0, 0, 0)
        if zygote.ruleset >= 0:
            kernel.syscall("landlock_restrict_self", 446, zygote.ruleset, 0)
        self._close_from(_TALK + 1)
        if zygote.filter is not None:
            zygote.install_filter()
        self.talk = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _TALK)
        self.file_size = file_size
        try:
            self.code = compile(source, "main.py", "exec", dont_inherit=True)
        except BaseException as error:
            self.talk.send(b"C" + _explain(error))
            os._exit(0)
        tame, modules, stored = zygote.tameness.look(self.code)
        for name in modules & _TAME_MODULES - sys.modules.keys():       # once here, not once a test
            try:
                __import__(name)
            except ImportError:
                pass
        self.batch = self.batch and tame
        self.counts_entries = bool(stored)
        self.reseeds = self.batch and "random" in modules

    def _close_from(self, first: int) -> None:
        if os.path.isabs(sys.path[0]) and not sys.path[0].startswith("/proc/"):
            os.closerange(first, OPEN_FILES + 64)
        else:
            os.closerange(first, _STDLIB_FD)
            os.closerange(_SITE_FD + 1, OPEN_FILES + 64)

    def serve(self) -> None:
        import _socket
        room = _socket.CMSG_SPACE(8)
        clock = time.perf_counter
        fresh = True
        entries = self.zygote.tameness.entries() if self.batch and self.counts_entries else 0
        while True:
            message, ancillary, _, _ = self.talk.recvmsg(8, room)
            if not message:
                os._exit(0)
            given, result = struct.unpack("2i", ancillary[0][2])
            start, flags = clock(), 0
            if self.batch:
                status = self._test(given, result) << 8
                flags = _FRESH if fresh else 0
                fresh = False
                os.closerange(_TALK + 1, 16)
                if entries and self.zygote.tameness.entries() != entries:
                    flags |= _SPENT
                self._restore()
            else:
                child = self.zygote.kernel.fork()
                if child < 0:
                    raise OSError("no process for the test")
                if child == 0:
                    status = 1
                    try:
                        status = self._test(given, result)
                    finally:
                        os._exit(status)
                os.close(given)
                os.close(result)
                status = os.waitpid(child, 0)[1]
                self._sweep()
                flags = _FRESH
                if not self.zygote.sweeps or self.zygote._scratch_state() != self.zygote.clean:
                    flags |= _SPENT
            self.talk.send(_REPLY.pack(b"T", status, clock() - start, flags))
            if flags & _SPENT or status and self.batch:
                os._exit(0)

    def _sweep(self) -> None:
        """Nothing of a test outlives its verdict. Where kill(-1) would reach too far, the zygote does this for each test."""
        while self.zygote.sweeps:
            try:
                os.kill(-1, 9)
            except ProcessLookupError:
                pass
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break

    def _restore(self) -> None:
        """Between tests in one process: what a tame program may have changed."""
        sys.setrecursionlimit(self.zygote.recursion_limit)
        if self.reseeds or self.zygote.config["numpy"]:
            import random
            random.setstate(self.zygote.random_state)
            if self.zygote.config["numpy"]:
                self.zygote.numpy_random.set_state(self.zygote.numpy_state)

    def _test(self, given: int, result: int) -> int:
        """Run one test in this process; its exit status. `given` holds the input, `result` takes the output."""
        import atexit, builtins, io, threading, types       # noqa: E401
        arguments = None
        if self.name is None:
            os.dup2(given, 0)
            os.dup2(result, 1)
        else:       # stdin is empty and stdout goes nowhere: the result has a file of its own
            with open(given, "rb", closefd=False) as file:
                arguments = json.loads(file.read())
        if not self.batch:
            if self.name is not None:
                os.dup2(result, _TALK)
                result = _TALK
            self._close_from(_TALK + (self.name is not None))
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8")
        out = sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        names = vars(module)
        names.update(__builtins__=builtins, __file__="/tmp/main.py")
        status = 0
        try:
            if self.name is not None:
                sys.setrecursionlimit(50_000)
                names.update(self.zygote.prelude)
            exec(self.code, names)
            if self.name is not None:
                self._answer(names, arguments, result)
        except SystemExit as stop:
            if isinstance(stop.code, int):
                status = stop.code & 255
            elif stop.code is not None:
                status = 1
                os.write(2, _explain(stop))
        except BaseException as error:
            status = 1
            os.write(2, _explain(error))
        try:        # the end of an interpreter: threads, exit hooks, open files
            if not self.batch:
                threading._shutdown()
                atexit._run_exitfuncs()
            names.clear()
            for stream in (sys.stdout, out):
                if stream is not None and not stream.closed:
                    stream.flush()
        except BaseException as error:
            status = status or 1
            os.write(2, _explain(error))
        return status

    def _answer(self, names: dict, arguments: list, result: int) -> None:
        """Call the function under test and write its value as JSON."""
        solution = names.get("Solution")
        function = getattr(solution(), self.name, None) if isinstance(solution, type) else None
        function = function or names.get(self.name)
        if function is None:
            raise NameError(f"the program defines no function {self.name!r}")
        value = function(*arguments)
        text = json.dumps(value, default=_plain).encode()
        with open(result, "wb", closefd=False) as file:
            file.write(text)


def _plain(value):
    """numpy values as the numbers and lists they hold; anything else that JSON lacks is no answer."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the function returned a {type(value).__name__}, which is not a JSON value")


def _explain(error: BaseException) -> bytes:
    """One line: where and what."""
    try:
        line = getattr(error, "lineno", None)
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "main.py":
                line = trace.tb_lineno
            trace = trace.tb_next
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        return ("\n" + (f"line {line}: " if line else "") + text).encode("utf-8", "replace")[:400]
    except BaseException:
        return b"\nan exception that cannot be printed"


def _main_inside(fd: int) -> None:
    try:
        zygote = _Zygote(fd)
    except OSError as error:        # a layer that the kernel refuses half-way: the supervisor starts again without it
        import _socket
        _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd).send(b"X" + str(error).encode())
        os._exit(1)
    zygote.serve()


if __name__ == "__main__" and sys.argv[1:2] == ["--zygote"]:
    _main_inside(int(sys.argv[2]))      # the clean interpreter reads no further


# ---------------------------------------------------------------------------------------------------- comparing outputs

import contextlib      # noqa: E402
import re              # noqa: E402
import select          # noqa: E402
import socket          # noqa: E402
import subprocess      # noqa: E402
from dataclasses import dataclass      # noqa: E402
from decimal import Decimal, InvalidOperation      # noqa: E402

TOKEN_TOLERANCE = 1e-5      # absolute, as in CodeContests
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def same_output(output: str, expected: str, compare: str = "lines", float_tolerance: float | None = None) -> bool:
    """`lines` (LiveCodeBench, APPS): without white space at the ends, line by line, equal as text or as exact decimals.
    `tokens` (CodeContests): white-space tokens, case-insensitive; integers exact, other numbers within 1e-5. A
    `float_tolerance` holds for all numbers in either mode, absolute or relative, whichever is wider."""
    output, expected = output.strip(), expected.strip()
    if output == expected:
        return True
    if compare == "tokens":
        return _same_tokens(output.casefold().split(), expected.casefold().split(), float_tolerance, TOKEN_TOLERANCE)
    lines, expected_lines = output.split("\n"), expected.split("\n")
    return len(lines) == len(expected_lines) and all(
        a.strip() == b.strip() or _same_decimals(a, b)
        or float_tolerance is not None and _same_tokens(a.split(), b.split(), float_tolerance, 0.0)
        for a, b in zip(lines, expected_lines))


def _same_tokens(tokens: list[str], expected: list[str], tolerance: float | None, otherwise: float) -> bool:
    def same(a, b):
        if a == b:
            return True
        if not _NUMBER.fullmatch(a) or not _NUMBER.fullmatch(b):
            return False
        if tolerance is None and _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):
            return _plain_integer(a) == _plain_integer(b)       # as text: int() of a million digits takes minutes
        a, b = float(a), float(b)
        return abs(a - b) <= (otherwise if tolerance is None else tolerance * max(1.0, abs(b)))
    return len(tokens) == len(expected) and all(map(same, tokens, expected))


def _plain_integer(text: str) -> str:
    digits = text.lstrip("+-").lstrip("0")
    return ("-" if text[0] == "-" and digits else "") + digits


def _same_decimals(line: str, expected: str) -> bool:
    try:
        return [Decimal(t) for t in line.split()] == [Decimal(t) for t in expected.split()]
    except InvalidOperation:
        return False


def _same_value(value, expected, tolerance: float | None) -> bool:
    """JSON values: equal, or with a tolerance equal but for their numbers."""
    if tolerance is None:
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(_same_value(a, b, tolerance) for a, b in zip(value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(_same_value(value[k], expected[k], tolerance) for k in value)
    number = (int, float, Decimal)
    if isinstance(value, number) and isinstance(expected, number):
        return value == expected or abs(float(value) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))
    return value == expected


def _parse_json(text: str):
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 5000 else Decimal(digits))


# ---------------------------------------------------------------------------------------------- the supervisor: a sandbox

def _family(root: int) -> list[tuple[int, int, float]]:
    """All descendants of a process: (pid, resident bytes, processor seconds)."""
    children: dict[int, list] = {}
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(
                (int(name), int(fields[21]) * page, (int(fields[11]) + int(fields[12])) / ticks))
    stack, found = list(children.get(root, [])), []
    while stack:
        process = stack.pop()
        found.append(process)
        stack.extend(children.get(process[0], []))
    return found


class _Fault(Exception):
    """The machinery failed: restart and repeat, never score."""


def _memory_file(name: str, content: bytes = b"") -> int:
    fd = os.memfd_create(name)
    done = 0
    while done < len(content):      # pwrite leaves the offset at 0
        done += os.pwrite(fd, content[done:], done)
    return fd


def _send_files(sock: socket.socket, message: bytes, files: list[int]) -> None:
    sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(files)}i", *files))])


class _Sandbox:
    """One zygote, seen from outside: start it, give it programs, watch them."""

    def __init__(self, config: dict):
        self.config, self.refused = dict(config), {}
        self.uid_lock = None
        while True:
            try:
                self.report = self._start()
                self.report.update(self.refused)
                return
            except _Refused as refusal:
                self.config["layers"] = [layer for layer in self.config["layers"] if layer != "namespaces"]
                self.refused["namespaces"] = f"refused: {refusal}"

    def _start(self) -> dict:
        import tempfile
        config = self.config
        if os.geteuid() == 0 and self.uid_lock is None:
            self.uid_lock, config["uid"] = _own_user_id()
        config["scratch"] = None
        if "namespaces" not in config["layers"]:
            config["scratch"] = tempfile.mkdtemp(prefix="verifier-")
            config["user_tasks"] = sum(1 for _ in _tasks_of_user())
        self.scratch = config["scratch"]
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors = _memory_file("errors")
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-B", os.path.abspath(__file__), "--zygote", str(theirs.fileno())],
            env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
            pass_fds=[theirs.fileno(), config["alive"]], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors)
        theirs.close()
        self.control.settimeout(60)
        self.control.send(json.dumps(config).encode())
        try:
            while True:
                message = self.control.recv(1 << 16)
                if message[:1] == b"M":
                    self._map_users(struct.unpack_from("i", message, 1)[0])
                elif message[:1] == b"R":
                    break
                elif message[:1] == b"X":
                    self.close()
                    raise _Refused(message[1:].decode())
                else:
                    raise _Fault(f"the sandbox did not start: {self.error_text()}")
        except OSError as error:
            raise _Fault(f"the sandbox did not start: {error}; {self.error_text()}") from None
        self.pending = 0
        self.poller = select.poll()
        self.poller.register(self.control, select.POLLIN)
        family = _family(self.process.pid)
        self.zygote = family[-1][0] if family else self.process.pid
        self.base = _resident(self.zygote)
        return json.loads(message[1:])

    def _map_users(self, pid: int) -> None:
        """Root in the namespace is root here; user 1 of the namespace is the slot's own user id."""
        for lines, answer in ((f"0 0 1\n1 {self.config['uid']} 1\n", b"2"), ("0 0 1\n", b"1")):
            try:
                for kind in ("gid_map", "uid_map"):
                    with open(f"/proc/{pid}/{kind}", "w") as file:
                        file.write(lines)
                break
            except OSError:     # a container that has no such user id to give
                continue
        self.control.send(answer)

    def error_text(self) -> str:
        size = os.fstat(self.errors).st_size
        return os.pread(self.errors, 4096, max(0, size - 4096)).decode("utf-8", "replace").strip()

    def last_error(self) -> str:
        lines = self.error_text().splitlines()
        return lines[-1][:300] if lines else ""

    def begin(self, code: int, name: str | None, batch: bool, memory: int, file_size: int, cpu: int) -> None:
        self.talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.ftruncate(self.errors, 0)
        os.lseek(self.errors, 0, 0)
        flags = (_BATCH if batch else 0) | (_CALL if name is not None else 0)
        message = b"B" + _BEGIN.pack(flags, memory, file_size, cpu) + (name or "").encode()
        with theirs:
            self._control(lambda: _send_files(self.control, message, [code, theirs.fileno(), self.errors]))
        self.poller.register(self.talk, select.POLLIN)

    def end(self) -> int:
        """Kill what is left of the program, wait until the slot is clean; the wait status of the program process."""
        self.poller.unregister(self.talk)
        self.talk.close()
        self._control(lambda: self.control.send(b"K"))
        return self._control(lambda: struct.unpack("i", self.control.recv(16)[1:])[0])

    def _control(self, action):
        try:
            return action()
        except (OSError, struct.error) as error:
            raise _Fault(f"the sandbox was lost ({error or type(error).__name__}): {self.error_text()}") from None

    def give(self, given: int, result: int) -> bool:
        try:
            _send_files(self.talk, b"T", [given, result])
            return True
        except OSError:
            return False        # the program process is gone; reply() says how

    def reply(self, start: float, limit: float, spare: float, memory_total: int):
        """The next reply: its tuple, or the reason why none came. A program that was ready to run while the machine ran
        something else gets that time back, up to `spare` seconds, unless it has used its limit of processor time."""
        deadline, look = start + limit, start + WATCH_SECONDS
        while True:
            now = time.monotonic()
            events = self.poller.poll(max(0.0, min(deadline, look) - now) * 1000)
            for fd, _ in events:
                if fd == self.control.fileno():
                    raise _Fault(f"the sandbox was lost: {self.error_text()}")
                message = self._receive()
                if message[:1] == b"C":
                    return "compile_error", message[1:].decode("utf-8", "replace").strip()
                return _REPLY.unpack(message)[1:] if len(message) == _REPLY.size else ("died", "")
            now = time.monotonic()
            if now >= deadline:
                extra = min(self._time_lost(limit), spare)
                if start + limit + extra <= now:
                    return "time_limit", ""
                deadline = start + limit + extra
            if now >= look:
                family = _family(self.zygote)
                if sum(max(0, resident - self.base) for _, resident, _ in family) > memory_total:
                    return "memory_limit", "all processes together"
                if not self.config["exact_processes"] and len(family) > self.config["processes"] + 1:
                    return "runtime_error", "too many processes"
                look = now + max(WATCH_SECONDS, 20 * (time.monotonic() - now))

    def _receive(self) -> bytes:
        for _ in range(2):      # a process that ends with unread messages makes the first call fail, its last word is next
            with contextlib.suppress(OSError):
                return self.talk.recv(1024)
        return b""

    def _time_lost(self, limit: float) -> float:
        family = _family(self.zygote)
        if sum(cpu for _, _, cpu in family) >= limit:
            return 0.0
        lost = 0.0
        for pid, _, _ in family:
            try:
                with open(f"/proc/{pid}/schedstat") as file:
                    lost = max(lost, int(file.read().split()[1]) / 1e9)
            except (OSError, IndexError):
                continue
        return lost

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.errors)
        if self.scratch:
            with contextlib.suppress(FileNotFoundError):
                _empty_directory(self.scratch)
                os.rmdir(self.scratch)


class _Refused(Exception):
    """The kernel refuses namespaces or the image in them."""


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tasks_of_user():
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat("/proc/" + name).st_uid == os.geteuid():
                    yield from os.listdir(f"/proc/{name}/task")


def _own_user_id() -> tuple[socket.socket, int]:
    """A user id that no other sandbox of this machine uses now; the abstract socket is the lock, freed by the kernel."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for uid in range(61_000, 65_000):
        try:
            lock.bind(f"\0verifier-user-{uid}")
            return lock, uid
        except OSError:
            continue
    raise _Fault("no free user id between 61000 and 65000")


# ------------------------------------------------------------------------------------------- the supervisor: one verdict

class _Judge:
    """Judges one item at a time in the sandboxes of one worker."""

    def __init__(self, config: dict):
        self.config = config
        self.boxes: dict[bool, _Sandbox] = {}
        self.box(False)

    def box(self, numpy: bool) -> _Sandbox:
        numpy = numpy and bool(self.config["site"])
        if numpy not in self.boxes:
            self.boxes[numpy] = _Sandbox(dict(self.config, numpy=numpy))
        return self.boxes[numpy]

    def drop_boxes(self) -> None:
        for box in self.boxes.values():
            with contextlib.suppress(OSError):
                box.process.kill()
                box.close()
        self.boxes.clear()

    def judge(self, item: dict) -> dict:
        code = item["code"] or ""
        tests, wanted = item["tests"], bool(item.get("want_outputs"))
        self.item, self.wanted, self.name = item, wanted, item.get("fn_name")
        if self.name is not None:
            self.expected = [_parse_json(test["output"]) for test in tests]
        if not code.strip():
            return dict(passed=False, status="empty", tests_passed=0, seconds=0.0, message="no program",
                        outputs=[None] * len(tests) if wanted else None)
        self.tests = tests
        self.limit = min(float(item.get("time_limit") or self.config["test_seconds"]), self.config["program_seconds"])
        self.memory = int((item.get("memory_mb") or self.config["memory_mb"]) * 2**20)
        self.memory_total = max(self.config["total_memory_mb"] * 2**20, self.memory * 3 // 2)
        longest = max(len(test["output"]) for test in tests)
        self.output_limit = max(self.config["output_mb"] << 20, 2 * longest + (1 << 20))
        self.seconds, self.spare = 0.0, self.config["program_seconds"]
        self.results: list = [None] * len(tests)       # (status, message, output) of each test
        source = code.encode("utf-8", "surrogatepass")
        self.sandbox = self.box(b"numpy" in source)
        self.code = _memory_file("code", source)
        try:
            self._run_tests()
        finally:
            os.close(self.code)
        return self._verdict()

    def _run_tests(self) -> None:
        count = len(self.tests)
        first = 0
        if self.config["mode"] == "batch":
            first = self._run(0, count, batch=True)
            failed = next((k for k in range(count) if self.results[k] is None or self.results[k][0] != "accepted"), count)
            if failed < count and self.results[failed] is not None and not self.fresh[failed]:
                # the first that is not clean in company is repeated alone; the rest stands if that made no difference
                before, self.results[failed] = self.results[failed], None
                self._run(failed, failed + 1, batch=False)
                if self.results[failed] != before:
                    self.results[failed + 1:] = [None] * (count - failed - 1)
            first = failed
        for k in range(first, count):
            if not self.wanted and any(r and r[0] != "accepted" for r in self.results):
                return
            if self.results[k] is None:
                end = next((j for j in range(k, count) if self.results[j] is not None), count)
                self._run(k, end, batch=False)

    def _run(self, first: int, end: int, batch: bool) -> int:
        """Tests first..end in one program process, until one ends it; the first test that was not run."""
        box, k = self.sandbox, first
        self.fresh = getattr(self, "fresh", None) if not batch else [True] * len(self.tests)
        if self.seconds >= self.config["program_seconds"]:
            for j in range(first, end):
                self.results[j] = ("time_limit", f"{self.config['program_seconds']:g} s for the whole program", None)
            return end
        box.begin(self.code, self.name, batch, self.memory, self.output_limit,
                  int(2 * self.config["program_seconds"]) + 5)
        ahead: list[tuple[int, int]] = []
        status = None
        start = time.monotonic()
        try:
            while k < end:
                while len(ahead) < DEPTH and k + len(ahead) < end:
                    files = (_memory_file("in", self.tests[k + len(ahead)]["input"].encode("utf-8", "surrogatepass")),
                             _memory_file("out"))
                    ahead.append(files)
                    box.give(*files)
                limit = min(self.limit, self.config["program_seconds"] - self.seconds)
                reply = box.reply(start, limit, self.spare, self.memory_total)
                now = time.monotonic()
                given, result = ahead.pop(0)
                os.close(given)
                if isinstance(reply[0], str):
                    took = now - start
                    outcome = (*self._why(reply, box), None)
                    self.spare = max(0.0, self.spare - max(0.0, took - limit))
                    if reply[0] == "died":
                        status = box.end()
                        outcome = (*self._of_status(status, box), None)
                        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _SETUP_FAILED:
                            raise _Fault(f"a program could not be confined: {box.last_error()}")
                    fresh, spent = k == first, True
                else:
                    wait_status, took, flags = reply
                    fresh, spent = bool(flags & _FRESH), bool(flags & _SPENT)
                    if spent:
                        status = box.end()      # before the output is read: nothing may be left to write it
                    outcome = self._outcome(k, wait_status, result, box)
                    spent = spent or batch and not fresh and wait_status != 0 or batch and wait_status != 0
                start = now
                os.close(result)
                self.results[k] = outcome
                if self.fresh is not None:
                    self.fresh[k] = fresh or not batch
                passed = outcome[0] == "accepted"
                if passed or fresh or not batch:
                    self.seconds += took
                k += 1
                if outcome[0] == "compile_error":
                    self.results[k:] = [outcome] * (len(self.tests) - k)
                    return len(self.tests)
                if spent or not passed and not self.wanted:
                    return k
            return k
        finally:
            for files in ahead:
                os.close(files[0]), os.close(files[1])
            if status is None:
                box.end()
                
    def _why(self, reply, box) -> tuple[str, str]:
        status, message = reply
        if status == "time_limit":
            message = f"{self.limit:g} s"
        return status, message

    def _of_status(self, status: int, box) -> tuple[str, str]:
        import signal
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
            return ("time_limit" if number == signal.SIGXCPU else "runtime_error"), f"killed by {name}"
        message = box.last_error()
        if re.search(r"(^|: )(_Array)?MemoryError\b", message) or message.startswith("numpy") and "MemoryError" in message:
            return "memory_limit", message
        return "runtime_error", message or f"exit status {os.WEXITSTATUS(status)}"

    def _outcome(self, k: int, wait_status: int, result: int, box) -> tuple[str, str, str | None]:
        size = os.fstat(result).st_size
        if size >= self.output_limit:
            return "output_limit", f"more than {self.output_limit >> 20} MiB", None
        if wait_status != 0:
            return (*self._of_status(wait_status, box), None)
        output = os.pread(result, size, 0).decode("utf-8", "replace")
        test, item = self.tests[k], self.item
        if self.name is None:
            same = same_output(output, test["output"], item.get("compare") or "lines", item.get("float_tolerance"))
        else:
            try:
                same = _same_value(_parse_json(output), self.expected[k], item.get("float_tolerance"))
            except (ValueError, RecursionError, ArithmeticError):
                same = False
        if same:
            return "accepted", "", output
        return "wrong_answer", f"expected {_short(test['output'])}, got {_short(output)}", output

    def _verdict(self) -> dict:
        failed = next((k for k, r in enumerate(self.results) if r is None or r[0] != "accepted"), None)
        if failed is None:
            verdict = dict(passed=True, status="accepted", tests_passed=len(self.tests), message="")
        else:
            status, message, _ = self.results[failed]
            passed = sum(r is not None and r[0] == "accepted" for r in self.results) if self.wanted else failed
            verdict = dict(passed=False, status=status, tests_passed=passed,
                           message=message if status == "compile_error" else f"test {failed + 1}: {message}")
        return dict(verdict, seconds=self.seconds, outputs=[r[2] if r else None for r in self.results] if self.wanted else None)


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _main_supervisor(fd: int) -> None:
    """Items come in, verdicts go out, until the caller is gone."""
    import ctypes
    import pickle
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = socket.socket(fileno=fd)
    config = pickle.loads(_receive(stream))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)     # die with the caller's thread; the zygotes see it and clean up
    if os.getppid() != config["caller"]:
        return
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    judge = None
    while True:
        try:
            if judge is None:
                judge = _Judge(config)
                answer = ("ready", _summary(judge.box(False).report, config))
            else:
                request = _receive(stream)
                if not request:
                    break
                answer = ("verdict", judge.judge(pickle.loads(request)))
        except _Fault as fault:
            answer = ("fault", str(fault))
            if judge is not None:
                judge.drop_boxes()
        _send(stream, pickle.dumps(answer))
        if judge is None:
            return


def _send(stream: socket.socket, data: bytes) -> None:
    stream.sendall(struct.pack("<Q", len(data)) + data)


def _receive(stream: socket.socket) -> bytes:
    """One message; empty at the end of the stream."""
    def exactly(count):
        parts = []
        while count:
            part = stream.recv(min(count, 1 << 20))
            if not part:
                return b""
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
    head = exactly(8)
    return exactly(struct.unpack("<Q", head)[0]) if head else b""


def _summary(report: dict, config: dict) -> dict:
    active = {layer for layer, state in report.items() if state == "active"}
    if {"namespaces", "seccomp"} <= active:
        tier = "A"
    elif {"identity", "landlock", "seccomp"} <= active:
        tier = "B"
    elif {"landlock", "seccomp"} <= active:
        tier = "C"
    else:
        tier = "D"
    return dict(report, tier=tier, numpy="active" if config["site"] else "off: not installed")


# ------------------------------------------------------------------------------------------------ in the caller's process

class SandboxError(RuntimeError):
    """A fault of the machinery, never of the program: raised after one retry, and not a verdict."""


@dataclass
class Verdict:
    passed: bool
    status: str             # accepted, wrong_answer, time_limit, memory_limit, output_limit, runtime_error, compile_error, empty
    tests_passed: int       # before the first that failed; with want_outputs, of all
    seconds: float          # wall clock of its tests
    message: str = ""
    outputs: list[str | None] | None = None     # with want_outputs: one a test, None where it did not end normally


def check_item(item: dict) -> None:
    """ValueError, in one sentence, where an item is not what the docstring of this file says."""
    if not isinstance(item, dict):
        raise ValueError(f"an item must be an object with code and tests, not {type(item).__name__}")
    for key in ("code", "tests"):
        if key not in item:
            raise ValueError(f"an item needs the key {key!r}")
    if not isinstance(item["code"], (str, type(None))):
        raise ValueError(f"code must be text or null, not {type(item['code']).__name__}")
    tests = item["tests"]
    if not isinstance(tests, list) or not tests:
        raise ValueError("an item needs at least one test: a program that was not run is not accepted")
    for n, test in enumerate(tests):
        for key in ("input", "output"):
            if not isinstance(test, dict) or not isinstance(test.get(key), str):
                raise ValueError(f"test {n + 1} needs the key {key!r} with text in it")
    if item.get("fn_name") is not None:
        if not isinstance(item["fn_name"], str) or not item["fn_name"].isidentifier():
            raise ValueError(f"fn_name must be the name of a function, not {item['fn_name']!r}")
        for n, test in enumerate(tests):
            try:
                if not isinstance(_parse_json(test["input"]), list):
                    raise ValueError("not a list")
                _parse_json(test["output"])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"test {n + 1} of a call needs a JSON list as input and a JSON value as output "
                                 f"({error})") from None
    if item.get("compare") not in (None, "lines", "tokens"):
        raise ValueError(f"compare must be 'lines' or 'tokens', not {item['compare']!r}")
    for key in ("time_limit", "memory_mb", "float_tolerance"):
        value = item.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9):
            raise ValueError(f"{key} must be a positive number, not {value!r}")


class Verifier:
    """Workers that judge programs. Also a context manager; `report` and `tier` say what protects this machine."""

    def __init__(self, workers: int | None = None, mode: str = "batch", min_tier: str | None = None, *,
                 test_seconds: float = TEST_SECONDS, program_seconds: float = PROGRAM_SECONDS,
                 memory_mb: int = MEMORY_MB, total_memory_mb: int = TOTAL_MEMORY_MB, processes: int = PROCESSES,
                 output_mb: int = OUTPUT_MB, scratch_mb: int = SCRATCH_MB, layers: tuple[str, ...] = LAYERS):
        import queue
        import threading
        if workers is None:
            workers = len(os.sched_getaffinity(0))
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if mode not in ("batch", "strict"):
            raise ValueError(f"mode must be 'batch' or 'strict', not {mode!r}")
        if min_tier not in (None, *TIERS):
            raise ValueError(f"min_tier must be one of {', '.join(TIERS)}, not {min_tier!r}")
        self.workers, self.test_seconds, self.program_seconds = workers, test_seconds, program_seconds
        self._config = dict(_image(), mode=mode, test_seconds=test_seconds, program_seconds=program_seconds,
                            memory_mb=memory_mb, total_memory_mb=total_memory_mb, processes=processes, output_mb=output_mb,
                            scratch_mb=scratch_mb, layers=list(layers), caller=os.getpid(), uid=0)
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._closed = False
        self._owner = os.getpid()
        self._workers = [_Worker(self._config, self._jobs) for _ in range(workers)]
        for worker in self._workers:
            worker.thread = threading.Thread(target=worker.run, daemon=True, name="verifier")
            worker.thread.start()
        try:
            reports = [worker.started.result() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.report = reports[0]
        self.tier = self.report["tier"]
        if self.tier > (min_tier or "C"):
            self.close()
            why = "; ".join(f"{layer} {state}" for layer, state in self.report.items() if state != "active")
            raise SandboxError(f"this machine gives tier {self.tier}, and {min_tier or 'C'} is asked for ({why}); "
                               f"min_tier={self.tier!r} accepts it")

    def submit(self, item: dict):
        """A Future of the Verdict of one item; the item is checked here."""
        from concurrent.futures import Future
        check_item(item)
        if self._closed:
            raise RuntimeError("this Verifier is closed")
        future: Future = Future()
        self._jobs.put((item, future))
        return future

    def judge(self, items) -> list[Verdict]:
        """The verdicts of many items, in order."""
        futures = [self.submit(item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def worst_case_seconds(self, programs: int) -> float:
        """No more than this passes until `programs` verdicts are there: each may use the limit of a program, have one test
        repeated, and get back what a busy machine took from it, up to that limit again. (Restarts apart.)"""
        each = 2 * self.program_seconds + min(self.test_seconds, self.program_seconds) + 1.0
        return -(-programs // self.workers) * each

    def close(self) -> None:
        """Stop at once: running programs are killed, waiting ones cancelled."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        for worker in self._workers:
            worker.closing = True
        for worker in self._workers:
            self._jobs.put(None)
            worker.kill()
        for worker in self._workers:
            worker.thread.join()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class _Worker:
    """The caller's end of one supervisor; its thread sends an item, waits for the verdict, and starts a new one if it dies."""

    def __init__(self, config: dict, jobs):
        import threading
        from concurrent.futures import Future
        self.config, self.jobs = config, jobs
        self.started: Future = Future()
        self.closing = False
        self.process = None
        self.lock = threading.Lock()

    def start(self) -> None:
        import pickle
        self.stream, theirs = socket.socketpair()
        self.alive, held = os.pipe()
        with self.lock:
            if self.closing:
                raise SandboxError("closing")
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", os.path.abspath(__file__), "--supervisor", str(theirs.fileno())],
                env={"PYTHONSAFEPATH": "1", "LC_ALL": "C.UTF-8", "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
                pass_fds=[theirs.fileno(), held], start_new_session=True, stdin=subprocess.DEVNULL, cwd="/")
        theirs.close()
        os.close(held)
        _send(self.stream, pickle.dumps(dict(self.config, alive=held, exact_processes=True)))
        kind, answer = self.receive()
        if kind == "fault":
            raise SandboxError(answer)
        if not self.started.done():
            self.started.set_result(answer)

    def receive(self):
        import pickle
        data = _receive(self.stream)
        if not data:
            raise SandboxError("the supervisor of a worker died")
        return pickle.loads(data)

    def run(self) -> None:
        import pickle
        try:
            self.start()
        except BaseException as error:
            self.started.set_exception(error)
            return
        while True:
            job = self.jobs.get()
            if job is None:
                break
            item, future = job
            if not future.set_running_or_notify_cancel():
                continue
            for attempt in (1, 2):
                try:
                    if self.process is None:
                        self.start()
                    _send(self.stream, pickle.dumps(item))
                    kind, answer = self.receive()
                    if kind == "fault":
                        raise SandboxError(answer)
                    future.set_result(Verdict(**answer))
                    break
                except (SandboxError, OSError) as error:
                    self.kill()
                    self.reap()
                    if attempt == 2 or self.closing:
                        future.set_exception(SandboxError(f"no verdict: {error}"))
                        break
        self.kill()
        self.reap()

    def kill(self) -> None:
        with self.lock:
            if self.process is not None:
                self.process.kill()

    def reap(self) -> None:
        """Wait until all processes of this worker are gone: each of ours holds the other end of the pipe."""
        if self.process is None:
            return
        self.process.wait()
        self.process = None
        self.stream.close()
        select.select([self.alive], [], [], 10.0)
        os.close(self.alive)


_IMAGE: dict = {}


def _image() -> dict:
    """Which files a program may see: the standard library, numpy, and the shared objects that both need, found by loading
    each extension module in a throwaway interpreter."""
    if _IMAGE:
        return _IMAGE
    import importlib.util
    import sysconfig
    stdlib = os.path.realpath(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec("numpy")
    package = os.path.realpath(os.path.dirname(spec.origin)) if spec and spec.origin else None
    site = os.path.dirname(package) if package else None
    packages = [path for path in (package, package and package + ".libs") if path and os.path.isdir(path)]
    found = subprocess.run([sys.executable, "-s", "-S", "-B", "-c", _PROBE, stdlib + "/lib-dynload", *packages],
                           capture_output=True, text=True, check=True, cwd="/",
                           env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}).stdout.split("\n")
    inside = (stdlib + "/", *(path + "/" for path in packages))
    objects = {path for path in found if path and not path.startswith(inside)}
    # the names under which the dynamic linker looks for them
    aliases = [(e.path, path) for path in objects for e in os.scandir(os.path.dirname(path))
               if e.is_symlink() and ".so" in e.name and os.path.realpath(e.path) == path]
    readable = sorted(objects) + packages
    readable += [path for path in ("/etc/ld.so.cache", "/usr/share/zoneinfo") if os.path.exists(path)]
    _IMAGE.update(stdlib=stdlib, site=site, readable=readable,
                  masked=[p for p in (stdlib + "/site-packages", stdlib + "/dist-packages") if os.path.isdir(p)],
                  links=[(p, os.readlink(p)) for p in ("/lib", "/lib64", "/lib32") if os.path.islink(p)], aliases=aliases)
    return _IMAGE


_PROBE = """
import ctypes, os, sys
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for name in names:
            if name.endswith(".so"):
                try: ctypes.CDLL(os.path.join(folder, name), os.RTLD_LAZY)
                except OSError: pass
print("\\n".join(sorted({line.split(None, 5)[5].strip() for line in open("/proc/self/maps")
                        if ".so" in line and len(line.split(None, 5)) == 6})))
"""


# ------------------------------------------------------------------------------------------------------------- commands

def _read_items(path: str) -> list[dict]:
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


def main(arguments: list[str] | None = None) -> int:
    import argparse
    import dataclasses
    parser = argparse.ArgumentParser(description="Run programs against tests in a sandbox.")
    commands = parser.add_subparsers(dest="command", required=True)
    judge = commands.add_parser("judge", help="verdicts of a file of JSON lines, as JSON lines on stdout")
    judge.add_argument("file", help="JSON lines; - is standard input")
    judge.add_argument("--workers", type=int, help="processes that judge at a time (default: the processors)")
    judge.add_argument("--mode", choices=("strict", "batch"), default="strict",
                       help="strict: a fresh process for each test (default); batch: tame programs in one process")
    judge.add_argument("--min-tier", choices=TIERS, help="refuse weaker protection (default C; see doctor)")
    commands.add_parser("doctor", help="which protections are active here: each is tried")
    args = parser.parse_args(arguments)
    try:
        if args.command == "doctor":
            return _doctor()
        items = _read_items(args.file)
        with Verifier(args.workers, args.mode, args.min_tier) as verifier:
            failed = False
            for future in [verifier.submit(item) for item in items]:
                try:
                    line = dataclasses.asdict(future.result())
                    if line["outputs"] is None:
                        del line["outputs"]
                except SandboxError as error:
                    failed = True
                    line = dict(passed=False, status="sandbox_error", tests_passed=0, seconds=0.0, message=str(error))
                print(json.dumps(line), flush=True)
            return 1 if failed else 0
    except (ValueError, OSError) as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 2
    except SandboxError as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 1


def _doctor() -> int:
    with Verifier(1, min_tier="D") as verifier:
        for layer, state in verifier.report.items():
            print(f"{layer:<16}{state}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--supervisor"]:
        _main_supervisor(int(sys.argv[2]))
    else:
        sys.exit(main())
