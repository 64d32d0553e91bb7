# Runs inside an instance, as its user, before the program: Python imports it as `sitecustomize` when it has made its path.
# Before this text stand: PARK (or else it learns), SAY and ARCHIVE (descriptors), MODULES (text, one a line).
# Parking: imports what an instance before imported, checks that nothing came of it, or of what Python runs by itself, that can't
# wait, says so, and waits for a signal. Learning: notes what is imported. Either way the program finds nothing of this.
import os
import sys


def refuse(why):
    os.write(SAY, ("R" + why).encode("utf-8", "replace")[:1000])
    os._exit(0)


def remove_traces():
    path = "/proc/self/fd/%d" % ARCHIVE
    sys.path[:] = [entry for entry in sys.path if entry != path]
    sys.path_importer_cache.pop(path, None)
    cache = getattr(sys.modules.get("zipimport"), "_zip_directory_cache", {})
    cache.pop(path, None)
    own, colon, given = os.environ["PYTHONPATH"].partition(":")
    if colon:
        os.environ["PYTHONPATH"] = given
    else:
        del os.environ["PYTHONPATH"]
    os.close(ARCHIVE)


def import_real_one():
    sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        return False
    return True


def spec_of(name):
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_spec", None)
        spec = find(name, None) if find else None
        if spec is not None:
            return spec
    return None


class Learner:
    """Looks at what is imported and finds nothing. In the programs that this one forks too."""

    def __init__(self):
        import time

        self.now = time.monotonic
        self.end = self.now() + 60
        self.file = self.identity()

    def identity(self):
        found = os.fstat(SAY)
        return (found.st_dev, found.st_ino)

    def find_spec(self, name, path=None, target=None):
        if self.end:
            try:
                # The program may have closed the descriptor and have another file under its number.
                if self.now() > self.end or self.identity() != self.file:
                    self.end = 0
                else:
                    os.write(SAY, (name + "\n").encode())
            except Exception:
                # Also when it is full.
                self.end = 0
        return None


class Origin:
    """Which modules are the image's and not the app's: those of the library and of installed packages."""

    def __init__(self):
        # The app may have a module of that name, too.
        self.library = (getattr(sys, "_stdlib_dir", None) or os.path.dirname(os.__file__)) + os.sep
        argv = getattr(sys, "orig_argv", None) or sys.argv
        script = next((word for word in argv[1:] if os.sep in word), "")
        self.own = {os.getcwd(), os.path.dirname(os.path.abspath(script)) if script else os.getcwd()}
        self.known = {}

    def installed(self, name):
        top = name.partition(".")[0]
        if top not in self.known:
            self.known[top] = self.look(top)
        return self.known[top]

    def look(self, top):
        for folder in self.own:
            path = os.path.join(folder, top)
            # It may stand before the library's in the program's path.
            if os.path.exists(path + ".py") or os.path.isfile(os.path.join(path, "__init__.py")):
                return False
        return self.is_spec_of_installed(spec_of(top))

    def is_spec_of_installed(self, spec):
        if spec is None:
            return False
        if spec.origin in ("built-in", "frozen"):
            return True
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        return bool(places) and all(self.is_installed(place) for place in places)

    def runs_by_itself(self):
        """What of the app's own Python runs before any program, in words; None if there is nothing."""
        for name, module in list(sys.modules.items()):
            place = getattr(module, "__file__", None)
            if name != "sitecustomize" and place and not self.is_installed(place):
                return "Python imports %s by itself, which is not of an installed package" % place
        spec = spec_of("sitecustomize")
        if spec is not None and not self.is_spec_of_installed(spec):
            return "Python runs %s by itself, which is not of an installed package" % spec.origin
        return None

    def is_installed(self, place):
        parts = place.split(os.sep)
        return place.startswith(self.library) or "site-packages" in parts or "dist-packages" in parts


def threads():
    return len(os.listdir("/proc/self/task"))


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found


def leftover(before):
    """What can't wait in a process that may fork afterwards, in words; None if there is nothing."""
    count = threads() - 1
    if count:
        return "started %d thread%s" % (count, "" if count == 1 else "s")
    try:
        os.waitpid(-1, os.WNOHANG)
        return "started a child process"
    except ChildProcessError:
        pass
    for name, what in descriptors().items():
        if before.get(name) != what and what.startswith(("socket:", "pipe:", "anon_inode:")):
            kind, _, rest = what.partition(":")
            return "left a descriptor open (%s)" % (rest.strip("[]") if kind == "anon_inode" else kind)
    return None


def import_all(origin, before):
    for name in MODULES.split():
        if name in sys.modules or not origin.installed(name):
            continue
        try:
            __import__(name)
        except Exception:
            # As it failed in the instance that it was learnt from: looked for and not there.
            pass
        except BaseException as error:
            refuse("importing %s raised %s" % (name, type(error).__name__))
        if threads() > 1:
            refuse("importing %s %s" % (name, leftover(before)))
    found = leftover(before)
    if found:
        refuse("the modules it imports %s" % found)


def reseed():
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "ssl" in modules:
        modules["ssl"].RAND_add(os.urandom(32), 32.0)
    logging = modules.get("logging")
    if hasattr(logging, "_startTime"):
        import time

        now = time.time_ns() if isinstance(logging._startTime, int) else time.time()
        logging._startTime = now


def park(origin, before):
    import signal

    found = leftover(before)
    if found:
        refuse("sitecustomize or a .pth file of the image %s" % found)

    go_on = {signal.SIGUSR1}
    # Before it is said: the signal may come at once, and the first process of a namespace gets none that it doesn't await.
    signal.pthread_sigmask(signal.SIG_BLOCK, go_on)
    import_all(origin, before)
    os.write(SAY, b"P")
    os.close(SAY)
    while signal.sigwait(go_on) != signal.SIGUSR1:
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, go_on)
    reseed()


def main():
    # What it was born with: whatever else is open was opened by the image.
    born = [str(number) for number in (0, 1, 2, SAY)]
    before = {name: what for name, what in descriptors().items() if name in born}
    remove_traces()
    origin = Origin()
    why = origin.runs_by_itself()
    if why and PARK:
        refuse(why)
    real = import_real_one()
    why = why or origin.runs_by_itself()
    if why and PARK:
        refuse(why)
    if PARK:
        park(origin, before)
    elif why:
        # Nothing is to be parked of it, ever.
        os.write(SAY, ("!" + why).encode("utf-8", "replace")[:1000])
        os.close(SAY)
    else:
        os.set_inheritable(SAY, False)
        sys.meta_path.insert(0, Learner())
    if not real:
        # What Python takes as: there is none.
        raise ImportError("no sitecustomize", name="sitecustomize")


main()
