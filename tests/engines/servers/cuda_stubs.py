"""Give PyPI's torch (a CUDA build) tiny stand-ins for NVIDIA's libraries.

usage: make_cuda_stubs.py SITE_PACKAGES/torch/lib

PyPI's Linux torch cannot be imported without libcudart, libcublas, libcudnn, ...
(gigabytes of nvidia-* wheels).  On a machine with no GPU none of them is ever
used, so this writes, for each CUDA library that torch's own libraries NEED,
a shared object with the same soname, the same symbol names and the same symbol
versions, in which every function returns 100 (cudaErrorNoDevice).
torch.cuda.is_available() is then False and everything on the CPU works.
The stubs lie in torch/lib, which is the last entry of the libraries' RPATH, so
real nvidia-* wheels, where installed, still come first.
Needs gcc and readelf.  For CPU-only test machines; never for a GPU host.
"""

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUBBED = re.compile(
    r"lib(cudart|cupti|cublas|cublasLt|cudnn|cufft|cufile|curand|cusolver|"
    r"cusparse|cusparseLt|nccl|nvrtc|nvshmem_host|nvJitLink)\.so\.\d+$"
)
# functions that return a string or a pointer must not return 100
STRINGS = re.compile(r".*Get(Error|LastError).*(String|Name)?$|.*ErrorString$|.*ErrorName$")


def out(*cmd):
    return subprocess.run(cmd, check=True, capture_output=True, text=True).stdout


def main(libdir):
    libs = sorted(str(path) for path in Path(libdir).glob("lib*.so*"))
    needed = set()
    symbols = collections.defaultdict(dict)  # library -> {symbol: version or None}
    defined, loose, version_of = set(), set(), {}
    for lib in libs:
        for name in re.findall(r"NEEDED.*\[(.*)\]", out("readelf", "-dW", lib)):
            if STUBBED.match(name):
                needed.add(name)
        for part in re.split(r"File: ", out("readelf", "-VW", lib))[1:]:
            soname = part.split()[0]  # which library each needed version is from
            if STUBBED.match(soname):
                for version in re.findall(r"Name: (\S+)", part):
                    version_of[version] = soname
        for line in out("readelf", "--dyn-syms", "-W", lib).splitlines():
            f = line.split()
            if len(f) < 8 or not f[0].endswith(":"):
                continue
            name, _, version = f[7].partition("@")
            version = version.lstrip("@")
            if f[6] != "UND":
                defined.add(name)
            elif version:
                if version in version_of:
                    symbols[version_of[version]][name] = version
            else:
                loose.add(name)
    # NCCL, cuSPARSELt, cuFile, CUPTI and cuSOLVER have no symbol versions: go by name
    prefix = {
        "nccl": "libnccl",
        "cusparseLt": "libcusparseLt",
        "cuFile": "libcufile",
        "cupti": "libcupti",
        "cusolver": "libcusolver",
    }
    for name in loose - defined:
        for p, soname in prefix.items():
            if name.startswith(p):
                for lib in needed:
                    if lib.startswith(soname + "."):
                        symbols[lib].setdefault(name, None)
    for lib in sorted(needed):
        target = str(Path(libdir) / lib)
        with tempfile.TemporaryDirectory() as tmp:
            src, ver = str(Path(tmp) / "s.c"), str(Path(tmp) / "s.map")
            with Path(src).open("w") as fh:
                for name in sorted(symbols[lib]):
                    if STRINGS.match(name) and name != "cudaGetLastError" and name != "cudaPeekAtLastError":
                        fh.write(f'const char *{name}(void){{return "no CUDA on this machine";}}\n')
                    else:
                        fh.write(f"long {name}(void){{return 100;}}\n")
            cmd = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", "-o", target, src, "-Wl,-soname," + lib]
            versions = {v for v in symbols[lib].values() if v}
            if versions:
                with Path(ver).open("w") as fh:
                    fh.writelines(
                        v + " { global: " + "".join(n + "; " for n, w in symbols[lib].items() if w == v) + "};\n"
                        for v in versions
                    )
                cmd.append("-Wl,--version-script=" + ver)
            subprocess.run(cmd, check=True)
        print(f"stub {lib}: {len(symbols[lib])} functions")


if __name__ == "__main__":
    main(sys.argv[1])
