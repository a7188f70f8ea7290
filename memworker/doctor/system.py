"""Processor, cores, memory, shared memory and the limits of a process."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Iterator

import psutil

from memworker import processor as cpu
from memworker.doctor.findings import Finding, size
from memworker.pool import machine, shared_folder

# What products of matrices are made of; the first of each line makes int8 worth while.
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_OTHERS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_FEW_BYTES = 1 << 30
_FEW_DESCRIPTORS = 1024
_FEW_PROCESSES = 256
# A slot's region is some megabytes; a worker has two.
_FEW_SHARED_BYTES = 64 << 20


def processor(flags: Collection[str] | None = None) -> Finding:
    """Name the processor and the instructions that the engines use; `flags` stands for its own."""
    name, flags = cpu.name(), cpu.features() if flags is None else frozenset(flags)
    found = [flag for flag in (*_INT8, *_OTHERS) if flag in flags]
    advice = []
    if found and not set(_INT8) & set(found):
        advice.append(
            "This processor multiplies 8-bit numbers no faster than others (no VNNI, AMX or dot"
            " products): int8 gains little here. `memworker tune` measures what it gains."
        )
    if flags and not {"avx2", "asimd"} & set(found):
        advice.append("Without AVX2 embedding is several times slower; another machine helps.")
    told = f"{name}: {', '.join(found) or 'its instructions are not told here'}"
    return Finding("processor", told, {"name": name, "instructions": found}, tuple(advice))


def cores() -> Finding:
    """Count the cores that a pool uses, and say what bounds them."""
    usable, quota = machine.usable_cores(), machine.core_quota()
    logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    told = f"{usable} used, of {logical} logical"
    if allowed < logical:
        told += f", {allowed} of them allowed by the affinity mask"
    if quota is not None:
        told += f"; a control group allows {quota:g}"
    advice = []
    if quota is not None and quota < 1:
        advice.append(
            f"The control group allows {quota:g} of a core, so a worker stands still for a part"
            " of each tenth of a second. Allow one core or more (cpu.max; Docker: --cpus)."
        )
    elif quota is not None and quota - int(quota) >= 0.25 and quota < allowed:
        advice.append(
            f"Of the {quota:g} cores that the control group allows, {int(quota)} are used: a"
            " worker needs a whole one. Allow a whole number (cpu.max; Docker: --cpus)."
        )
    facts = {"used": usable, "logical": logical, "allowed": allowed, "quota": quota}
    return Finding("cores", told, facts, tuple(advice))


def memory() -> Finding:
    """Tell how much memory there is, what bounds it, and what is free."""
    total = int(psutil.virtual_memory().total)
    limit, free = machine.memory_bytes(), machine.free_bytes()
    told = f"{size(free)} free of {size(limit)}"
    if limit < total:
        told += f" (a control group's limit; the machine has {size(total)})"
    advice = []
    if free < _FEW_BYTES:
        advice.append(
            f"Only {size(free)} of memory are free. --memory {max(free >> 20, 1)}MB keeps a job"
            " below that; --workers 1 needs least."
        )
    facts = {"total_bytes": total, "limit_bytes": limit, "free_bytes": free}
    return Finding("memory", told, facts, tuple(advice))


def shared_memory() -> Finding:
    """Tell what texts and vectors are passed in: anonymous files, or files in a folder."""
    folder = shared_folder()
    if folder is None:
        return Finding("shared memory", "anonymous files (memfd)", {"kind": "memfd"})
    free = psutil.disk_usage(folder).free
    facts = {"kind": "file", "folder": folder, "free_bytes": free}
    advice: tuple[str, ...] = ()
    if free < _FEW_SHARED_BYTES:
        advice = (
            f"{folder} has {size(free)} free, and each worker needs some 20 MiB of it. Give it more"
            " (Docker: --shm-size=256m).",
        )
    return Finding("shared memory", f"files in {folder}, {size(free)} free", facts, advice)


def process_limits() -> Finding:
    """Tell what one process and one user may have: files, processes, addresses."""
    limits = {
        name: _soft(kind)
        for name, kind in (
            ("open files", resource.RLIMIT_NOFILE),
            ("processes", resource.RLIMIT_NPROC),
            ("address space", resource.RLIMIT_AS),
            ("file size", resource.RLIMIT_FSIZE),
        )
    }
    told = ", ".join(f"{name} {'unlimited' if n is None else n}" for name, n in limits.items())
    facts = {name.replace(" ", "_"): n for name, n in limits.items()}
    return Finding("process limits", told, facts, tuple(_advised(limits)))


def _advised(limits: dict[str, int | None]) -> Iterator[str]:
    files, processes = limits["open files"], limits["processes"]
    if files is not None and files < _FEW_DESCRIPTORS:
        yield (
            f"A process may have {files} files open: a table of many fragments, or many clients of"
            f" a server, need more. `ulimit -n {4 * _FEW_DESCRIPTORS}` allows them."
        )
    if processes is not None and processes < _FEW_PROCESSES:
        yield (
            f"The user may have {processes} processes and threads; a pool with LanceDB takes about"
            f" 100. `ulimit -u {16 * _FEW_PROCESSES}` allows them."
        )
    if limits["address space"] is not None:
        yield (
            f"Addresses are limited (ulimit -v {limits['address space'] // 1024}): mapped models"
            " and threads' stacks count too. Bound memory by --memory or a control group instead:"
            " `ulimit -v unlimited`."
        )
    if limits["file size"] is not None:
        yield (
            f"Files may have {size(limits['file size'])} at most: larger data files of a table"
            " fail. `ulimit -f unlimited` lifts that."
        )


def _soft(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft
