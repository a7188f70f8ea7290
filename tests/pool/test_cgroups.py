"""Limits of nested control groups, made up and real."""

from __future__ import annotations

import json
import subprocess

import pytest

from bench.cgroup import limited
from memworker import interpreters
from memworker.pool import cgroups
from memworker.pool.cgroups import Limits, limits

MIB = 1 << 20
V2 = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {shown} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}"
NO_LIMIT = 9223372036854771712


class Tree:
    """A made-up file system with the files that tell of cgroups."""

    def __init__(self, root):
        self.root = root

    def proc(self, own, *mounts):
        other = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"
        self.write("proc/self/cgroup", "\n".join(own))
        self.write("proc/self/mountinfo", "\n".join([other, *mounts]))
        return self

    def group(self, path, **files):
        (self.root / "sys/fs/cgroup" / path).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('__', '.')}", str(value))
        return self

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def limits(self):
        return limits(self.root)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_a_slice_above_binds(tree):
    tree.proc(["0::/user.slice/app.slice/job.scope"], V2.format(shown="/"))
    tree.group("user.slice", memory__max="max", cpu__max="max 100000")
    tree.group(
        "user.slice/app.slice",
        memory__max=600 * MIB,
        memory__current=200 * MIB,
        memory__stat=f"anon 5\nactive_file {30 * MIB}\ninactive_file {20 * MIB}",
        cpu__max="150000 100000",
    )
    tree.group("user.slice/app.slice/job.scope", memory__max="max", cpu__max="max 100000")
    assert tree.limits() == Limits(600 * MIB, 450 * MIB, 1.5)


def test_the_least_of_all_holds(tree):
    tree.proc(["0::/a/b"], V2.format(shown="/"))
    tree.group("a", memory__max=900 * MIB, memory__current=800 * MIB, cpu__max="200000 100000")
    tree.group("a/b", memory__max=500 * MIB, memory__high=400 * MIB, memory__current=100 * MIB)
    # The own group allows 400, of which 300 are left; the one above has 100 left for all.
    assert tree.limits() == Limits(400 * MIB, 100 * MIB, 2.0)


def test_a_pod_sees_its_own_part_of_the_tree_under_the_hosts_name(tree):
    own = "/kubepods/burstable/pod7/app"
    tree.proc([f"0::{own}"], V2.format(shown="/kubepods/burstable/pod7"))
    tree.group("", memory__max=300 * MIB, memory__current=0)
    tree.group("app", memory__max="max", cpu__max="50000 100000")
    assert tree.limits() == Limits(300 * MIB, 300 * MIB, 0.5)


@pytest.mark.parametrize("own", ["/", "/../../other", "/not/mounted/here"])
def test_a_container_whose_group_is_the_mounts_root(tree, own):
    tree.proc([f"0::{own}"], V2.format(shown="/"))
    tree.group("", memory__max=256 * MIB, memory__current=56 * MIB, cpu__max="100000 100000")
    assert tree.limits() == Limits(256 * MIB, 200 * MIB, 1.0)


def test_version_1_has_a_hierarchy_for_each_controller(tree):
    own = ["4:memory:/docker/abc/inner", "2:cpu,cpuacct:/docker/abc", "1:name=systemd:/x"]
    mounts = [V1.format(shown="/", name=name) for name in ("memory", "cpu,cpuacct")]
    tree.proc(own, *mounts)
    tree.group("memory/docker", memory__limit_in_bytes=NO_LIMIT)
    tree.group(
        "memory/docker/abc",
        memory__limit_in_bytes=700 * MIB,
        memory__usage_in_bytes=400 * MIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {50 * MIB}\ntotal_active_file 0",
    )
    tree.group("memory/docker/abc/inner", memory__limit_in_bytes=NO_LIMIT)
    tree.group("cpu,cpuacct/docker/abc", cpu__cfs_quota_us=300000, cpu__cfs_period_us=100000)
    tree.group("cpu,cpuacct/docker", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert tree.limits() == Limits(700 * MIB, 350 * MIB, 3.0)


def test_version_1_tells_of_a_limit_above_what_is_mounted(tree):
    tree.proc(["4:memory:/docker/abc"], V1.format(shown="/docker/abc", name="memory"))
    tree.group(
        "memory",
        memory__limit_in_bytes=NO_LIMIT,
        memory__usage_in_bytes=MIB,
        memory__stat=f"hierarchical_memory_limit {512 * MIB}",
    )
    assert tree.limits() == Limits(512 * MIB, 511 * MIB, None)


def test_both_versions_at_once(tree):
    unified = V2.format(shown="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    tree.proc(["4:memory:/job", "0::/"], V1.format(shown="/", name="memory"), unified)
    tree.group("memory/job", memory__limit_in_bytes=100 * MIB)
    tree.group("unified", cpu__max="100000 100000")
    assert tree.limits() == Limits(100 * MIB, 100 * MIB, 1.0)


def test_a_mount_point_with_a_space(tree):
    tree.proc(["0::/"], V2.format(shown="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/a\\040b"))
    tree.group("a b", memory__max=64 * MIB)
    assert tree.limits().memory_bytes == 64 * MIB


def test_no_cgroups_and_nonsense_bound_nothing(tree):
    assert tree.limits() == Limits()
    tree.proc(["0::/x", "", "garbage", "7"], V2.format(shown="/"), "- - -", "1 2 - cgroup2")
    tree.group("x", memory__max="much", memory__current="", cpu__max="1", memory__stat="odd\nx y")
    assert tree.limits() == Limits()
    tree.group("x", cpu__max="100 0", cpu__cfs_quota_us="100", cpu__cfs_period_us="0")
    assert tree.limits() == Limits()


@pytest.mark.parametrize("allowed", [(300 * MIB, None), (None, 300 * MIB), (300 * MIB, 900 * MIB)])
def test_real_nested_groups(allowed):
    with limited(*allowed) as group:
        if group is None:
            pytest.skip("needs the right to make memory cgroups (root)")
        code = (
            "import json\n"
            "from memworker.pool import cgroups, machine\n"
            "held = bytearray(50 << 20)\n"
            "for at in range(0, len(held), 4096): held[at] = 1\n"
            "print(json.dumps([machine.memory_bytes(), machine.free_bytes()]))"
        )
        done = subprocess.run(
            interpreters.command(code),
            preexec_fn=group.join,
            capture_output=True,
            text=True,
            check=True,
        )
    memory, free = json.loads(done.stdout)
    assert memory == 300 * MIB
    # The 50 MiB, and an interpreter with its libraries.
    assert 150 * MIB < free < 250 * MIB - 4 * MIB


def test_the_own_groups_can_be_read():
    found = cgroups.limits()
    assert found.memory_bytes is None or 0 <= found.free_bytes <= found.memory_bytes


def test_a_pool_goes_on_with_fewer_and_smaller_workers_before_it_refuses(tmp_path):
    """What two workers would need is not there: one does, and that is said."""
    with limited(195 * MIB) as group:
        if group is None:
            pytest.skip("needs the right to make memory cgroups (root)")
        code = (
            "import numpy, sys\n"
            "from memworker import EmbeddingPool\n"
            "from memworker.pool import machine\n"
            "machine.usable_cores = lambda: 4\n"
            "with EmbeddingPool('echo') as pool:\n"
            "    assert len(pool.embed(['a', 'b'])) == 2\n"
            "    print(pool.workers)"
        )
        done = subprocess.run(
            interpreters.command(code),
            preexec_fn=group.join,
            capture_output=True,
            text=True,
            check=True,
        )
    assert 1 <= int(done.stdout) < 4
    assert "4 workers would need about" in done.stderr and "--memory" in done.stderr
