"""text-embeddings-inference's router, where its binary is given."""

import subprocess
import time
import urllib.error
import urllib.request

from environment import HOME, Unavailable
from ferry import clients


class Tei:
    """A running router; nothing of it is left when the block ends."""

    def __init__(self, binary, model, ready_timeout_s=120.0):
        (port,) = clients.free_ports(1)
        self.http, self.ready_timeout_s = f"http://127.0.0.1:{port}", ready_timeout_s
        done = subprocess.run([binary, "--version"], capture_output=True, text=True)
        self.version = done.stdout.strip() or "unknown"
        self.command = [binary, "--model-id", str(model), "--hostname", "127.0.0.1", "--port", str(port)]

    def __enter__(self):
        log_path = HOME / "logs" / "tei.log"
        with open(log_path, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if urllib.request.urlopen(f"{self.http}/health", timeout=2).status == 200:
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.process.kill()
        self.process.wait()
        raise Unavailable(f"it is not ready; its log: {log_path}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
