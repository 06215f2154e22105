"""What a processor is called, on machines that this one is not."""

import subprocess

import pytest

from unlearnbench.store import provenance
from unlearnbench.store.provenance import cpu_identity, device_key


def arm(*parts, implementer="0x41", more=""):
    """Return /proc/cpuinfo of a machine with cores of these parts."""
    return "\n\n".join(
        f"processor\t: {k}\n{more}BogoMIPS\t: 50.00\nCPU implementer\t: {implementer}\nCPU part\t: {part}"
        for k, part in enumerate(parts)
    )


X86 = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD  EPYC\n"
    "stepping\t: 1\n\nprocessor\t: 1\nmodel name\t: AMD  EPYC\n"
)
POWER = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\n\ntimebase\t: 512000000\nmodel\t\t: 8335-GTH\n"
S390 = "vendor_id       : IBM/S390\nprocessor 0: version = FF,  identification = 0133E8,  machine = 3906\n"
RISCV = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc_zicntr_zicsr\nmmu\t\t: sv39\nuarch\t\t: sifive,u74-mc\n"
LOONGARCH = "system type\t: generic-loongson-machine\n\nprocessor\t: 0\nModel Name\t: Loongson-3A5000\n"


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this another machine."""

    def become(cpuinfo, cores=(0, 1), machine_id="m"):
        files = {"/proc/cpuinfo": cpuinfo, "/etc/machine-id": machine_id}
        monkeypatch.setattr(provenance, "_text", lambda path: files[str(path)])
        monkeypatch.setattr(provenance, "allowed_cores", lambda: list(cores))
        return cpu_identity()

    return become


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86.format(1), "AMD  EPYC"),  # to the letter, as records have it
        (arm("0xd0c", "0xd0c"), "ARM Neoverse-N1 (0x41/0xd0c)"),
        (arm("0xd0c", "0xd0c", more="model name\t: ARMv8 Processor rev 1 (v8l)\n"), "ARM Neoverse-N1 (0x41/0xd0c)"),
        (arm("0xfff"), "ARM (0x41/0xfff)"),
        (arm("0x000", implementer="0x61"), "Apple (0x61/0x000)"),
        (arm("0xd0c", implementer="0x99"), "(0x99/0xd0c)"),
        (arm("0xD08"), "ARM Cortex-A72 (0x41/0xd08)"),
        (arm("0xd03", "0xd08"), "ARM Cortex-A53 (0x41/0xd03) + ARM Cortex-A72 (0x41/0xd08)"),
        (arm("0xd03", "0xd03", "0xd08"), "ARM Cortex-A53 (0x41/0xd03)"),  # the third core is not ours
        (POWER, "POWER9"),
        (S390, "IBM/S390 machine 3906"),
        (RISCV, "RISC-V sifive,u74-mc rv64imafdc"),
        (LOONGARCH, "Loongson-3A5000"),
    ],
)
def test_every_kind_of_processor_has_a_name_of_its_own(machine, cpuinfo, name):
    assert machine(cpuinfo)["name"] == f"{name}, 2 cores"


def test_without_cpuinfo_the_system_is_asked(machine, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 142 Stepping 12, GenuineIntel")
    assert machine("")["name"] == "Intel64 Family 6 Model 142 Stepping 12, GenuineIntel, 2 cores"
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "vax")
    assert machine("")["name"] == "vax, 2 cores"


@pytest.mark.parametrize("answers", [True, False])
def test_a_mac_says_which_chip_it_has(machine, monkeypatch, answers):
    def run(command, **_):
        if not answers:
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, "Apple M1 Pro\n", "")

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert machine("")["name"] == ("Apple M1 Pro, 2 cores" if answers else "arm, 2 cores")


def test_what_is_sold_under_one_name_is_told_apart(machine):
    one, two = machine(X86.format(1)), machine(X86.format(17))
    assert one["name"] == two["name"]
    assert one["processor"] == "vendor_id AuthenticAMD, cpu family 25, model 1, stepping 1"
    assert device_key(one) != device_key(two)


def test_devices_of_one_model_share_what_is_made_once(machine):
    assert device_key(machine(X86.format(1))) == device_key(machine(X86.format(1), machine_id="another"))
    assert device_key(machine(X86.format(1))) != device_key(machine(X86.format(1), cores=[0]))
    gpu = {"type": "cuda", "name": "NVIDIA H100", "uuid": "1", "driver": "550", "cuda": "12.4", "memory_bytes": 5}
    assert device_key(gpu) == device_key({**gpu, "uuid": "2", "memory_bytes": 6})
    for other in ({"name": "NVIDIA A100"}, {"driver": "560"}, {"cuda": "13.0"}):
        assert device_key({**gpu, **other}) != device_key(gpu)
    assert device_key({"type": "cpu", "uuid": "1"}) != device_key({"type": "cpu", "uuid": "2"})  # nothing else is known
