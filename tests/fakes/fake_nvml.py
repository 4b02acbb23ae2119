"""A stand-in for pynvml, the driver's word on made-up GPUs."""

from types import ModuleType, SimpleNamespace


class FakeNVMLError(Exception):
    pass


def fake_nvml(*gpus: dict, broken: str | None = None) -> ModuleType:
    """Each GPU has uuid, name, total, free, cores, clock; perhaps a slot and slices. broken: why none is found."""
    nvml = ModuleType("pynvml")

    def start() -> None:
        if broken:
            raise FakeNVMLError(broken)

    def by_uuid(uuid: str) -> dict:
        found = [gpu for gpu in gpus if gpu["uuid"] == uuid]
        if not found:
            raise FakeNVMLError("Not Found")
        return found[0]

    def slot(gpu: dict) -> tuple[int, int]:
        if "slot" not in gpu:
            raise FakeNVMLError("Not Supported")
        return gpu["slot"]

    def capability(gpu: dict) -> tuple[int, int]:
        if "capability" not in gpu:
            raise FakeNVMLError("Not Supported")
        return gpu["capability"]

    def mig_mode(gpu: dict) -> tuple[int, int]:
        if "slices" not in gpu:
            raise FakeNVMLError("Not Supported")
        return bool(gpu["slices"]), bool(gpu["slices"])

    def mig_device(gpu: dict, index: int) -> dict:
        if gpu["slices"][index] is None:
            raise FakeNVMLError("Not Found")
        return gpu["slices"][index]

    functions = {
        "NVMLError": FakeNVMLError,
        "NVML_CLOCK_SM": 1,
        "nvmlInit": start,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetGpuInstanceId": lambda gpu: gpu["instances"][0],
        "nvmlDeviceGetComputeInstanceId": lambda gpu: gpu["instances"][1],
        "nvmlDeviceGetUUID": lambda gpu: gpu["uuid"],
        "nvmlDeviceGetName": lambda gpu: gpu["name"],
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=gpu["total"], free=gpu["free"]),
        "nvmlDeviceGetNumGpuCores": lambda gpu: gpu["cores"],
        "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: gpu["clock"],
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: slot(gpu)[0],
        "nvmlDeviceGetMaxPcieLinkWidth": lambda gpu: slot(gpu)[1],
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetMigMode": mig_mode,
        "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: len(gpu["slices"]),
        "nvmlDeviceGetMigDeviceHandleByIndex": mig_device,
    }
    for name, function in functions.items():
        setattr(nvml, name, function)
    return nvml
