"""What launch/ starts is what this repository has, and its numbers agree."""

import math
import pathlib
import re
import signal
import subprocess

import pytest
import yaml

from dit_jax.cli import parse_experiment
from dit_jax.parallel.mesh import RECIPES

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"


@pytest.fixture
def manifest():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_manifest_is_of_one_slice(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert (
        spec["parallelism"] == spec["completions"] == chips // resources["limits"]["google.com/tpu"]
    )
    assert job["replicas"] == 1 and pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0
    experiment = parse_experiment(container["args"], "")
    assert experiment.parallel == RECIPES["fsdp"]
    assert experiment.training.batch_size % chips == 0
    assert experiment.run.dir == "gs://BUCKET/runs/RUN_NAME"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert (ROOT / container["command"][1]).is_file()


def test_the_manifests_own_command_fills_in_every_name():
    text = (LAUNCH / "jobset.yaml").read_text()
    names = set(re.findall(r"-e s,([A-Z_]+),", text))
    body = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", body)) - {"JobSet"} == names


@pytest.mark.parametrize("script", ["slurm.sh", "worker.sh"])
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


@pytest.mark.parametrize("document", ["launch/slurm.sh", "launch/jobset.yaml", "docs/tpu.md"])
def test_what_is_named_is_there(document):
    for path in re.findall(r"(?:configs|launch|docs)/\w+\.\w+", (ROOT / document).read_text()):
        assert (ROOT / path).is_file(), path


def test_the_example_of_the_slurm_script_is_a_run():
    text = (LAUNCH / "slurm.sh").read_text().replace("\\\n#", "")
    line = re.search(r"sbatch --nodes (\d+) launch/slurm.sh (configs.*)", text)
    tasks = int(re.search(r"--ntasks-per-node=(\d+)", text)[1])
    assert tasks == int(re.search(r"--gpus-per-node=(\d+)", text)[1])
    experiment = parse_experiment(line[2].split(), "")
    devices = int(line[1]) * tasks
    assert devices % experiment.parallel.fsdp == 0 and experiment.parallel.data == -1
    assert experiment.training.batch_size % devices == 0


def worker(tmp_path, body):
    """Starts worker.sh with a train.py of one's own."""
    (tmp_path / "train.py").write_text(body)
    line = ["bash", str(LAUNCH / "worker.sh"), "configs/x.py", "--run.dir", "a folder"]
    return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_worker_passes_options_and_status_on(tmp_path, status):
    process = worker(tmp_path, f"import sys; print(sys.argv[1:]); sys.exit({status})")
    assert process.communicate(timeout=60)[0].strip() == "['configs/x.py', '--run.dir', 'a folder']"
    assert process.returncode == status


def test_a_worker_that_is_stopped_saves_and_has_not_finished(tmp_path):
    body = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = worker(tmp_path, body)
    assert process.stdout.readline().strip() == "started"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (tmp_path / "saved").exists()
