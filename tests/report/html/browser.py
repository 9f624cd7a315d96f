"""A page in a headless Chromium, without any network: what its own script finds there after some clicks."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, see docs/report.md")
QUIET = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-extensions"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=30000", "--dump-dom"),
)


def visit(page, script, tmp_path, size="1280,900"):
    """Open a page and run a script in it; return its result, what was written to the console, and requested URLs.

    Args:
        page: the page's text.
        script: the body of an asynchronous function, which returns what JSON can hold.
    """
    code = (
        "(async () => { let result; try {"
        "const ready = () => document.documentElement.dataset.ready;"
        "for (let i = 0; i < 400 && !ready(); i++) await new Promise((r) => setTimeout(r, 25));"
        f"result = await (async () => {{ {script} }})();"
        "} catch (error) { result = { error: String(error.stack) }; }"
        "const pre = document.createElement('pre'); pre.id = 'found'; pre.textContent = JSON.stringify(result);"
        "document.body.append(pre); })();"
    )
    # The page's policy runs no script but those it names, so this one is named, too.
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert page.count("script-src 'sha256-") == 1
    page = page.replace("script-src 'sha256-", f"script-src 'sha256-{allowed}' 'sha256-")
    path = tmp_path / "visited.html"
    path.write_text(page.replace("</body>", f"<script>{code}</script></body>"), encoding="utf-8")
    log = tmp_path / "requests.json"
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [CHROMIUM, *QUIET, *root, f"--window-size={size}", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, f"--log-net-log={log}", path.as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    console = re.findall(r"CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # What Chromium itself would like to know has "not an origin" for an initiator.
    by_page = {told["url"] for told in asked if told.get("initiator", "not an origin") != "not an origin"}
    requests = {url for url in by_page if not url.startswith(("file:", "data:", "blob:"))}
    return json.loads(html.unescape(found[1])), console, requests
