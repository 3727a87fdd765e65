import os, signal, subprocess, time
import pytest
from tests.curations import start_command
def left(group):
    out = subprocess.run(["ps","-eo","pgid=,pid=,stat=,args="],capture_output=True,text=True).stdout
    return [l for l in out.splitlines() if int(l.split()[0])==group and not l.split()[2].startswith("Z")]
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("pause", [0, 0.02, 0.3, 2.0, 5.0])
def test_x(flags, pairs, tmp_path, sig, whole, pause):
    p = start_command(flags, pairs, tmp_path/"out", workers=2)
    time.sleep(pause)
    try:
        (os.killpg if whole else os.kill)(p.pid, sig)
    except ProcessLookupError: print("gone")
    t=time.time()
    said,_ = p.communicate(timeout=120)
    took=time.time()-t
    for _ in range(100):
        if not left(p.pid): break
        time.sleep(0.1)
    print(sig, whole, pause, p.returncode, round(took,1), left(p.pid), repr(said[-150:]), "Traceback" in said)
    assert not left(p.pid)
