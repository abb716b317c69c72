"""Lines of tegrastats for five generations of Jetson, and the watts that each tells.

Not recorded here: no Jetson is at hand. Form and field names are those of NVIDIA's Jetson Linux Developer
Guide, "tegrastats Utility" (r32.7, r35.6, r36.4, r38.4, r39.2), figures are of the size that owners publish
in bug reports and forums. What a parser stumbles over is kept: RAM and SWAP have the slash of the old power
form, Xavier has a rail `CPU` beside the list `CPU [...]`, sensors of parts that are off say -256C,
unconnected channels are NC, and a rail's offset can make it negative.
"""

from __future__ import annotations

NANO = (  # JetPack 4.6, milliwatts without unit
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C "
    "GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
XAVIER = (  # AGX Xavier, JetPack 4: rails named like parts
    "RAM 10881/31919MB (lfb 4230x4MB) SWAP 0/15959MB (cached 0MB) CPU [17%@1190,17%@1190,18%@1190,25%@1190,"
    "off,off,off,off] EMC_FREQ 55%@2133 GR3D_FREQ 95%@1377 APE 150 MTS fg 0% bg 10% AO@48C GPU@54.5C "
    "Tdiode@53.25C PMIC@100C AUX@46C CPU@49C thermal@49.45C Tboard@47C GPU 18401/18525 CPU 2301/2330 "
    "SOC 4602/4602 CV 0/0 VDDRQ 2914/2911 SYS5V 4632/4620"
)
XAVIER_5 = (  # the same module under JetPack 5
    "RAM 3012/31002MB (lfb 5x4MB) SWAP 0/15501MB (cached 0MB) CPU [0%@1190,1%@1190,0%@1190,0%@1189,0%@1190,"
    "0%@1191,0%@1190,0%@1190] EMC_FREQ 0%@1331 GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 AUX@36C CPU@36.5C "
    "thermal@35.7C Tboard@37C AO@35C GPU@35C Tdiode@38.75C PMIC@50C GPU 467mW/467mW CPU 467mW/467mW "
    "SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW SYS5V 2768mW/2768mW"
)
ORIN_NANO = (  # JetPack 6
    "10-06-2026 12:00:01 RAM 2493/7620MB (lfb 1x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@729,3%@729,0%@729,"
    "0%@729,off,off] EMC_FREQ 1%@2133 GR3D_FREQ 37%@[611] NVDEC off NVJPG off NVJPG1 off VIC off APE 200 "
    "cpu@45.5C soc2@44.1C soc0@44.5C gpu@44.2C tj@45.5C soc1@44C VDD_IN 4556mW/4556mW "
    "VDD_CPU_GPU_CV 495mW/400mW VDD_SOC 1286mW/1200mW"
)
AGX_ORIN = (  # JetPack 5 and 6.0, with the unconnected channels of the second chip
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 "
    "GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C "
    "GPU@-256C tj@42.593C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
AGX_ORIN_7 = (  # JetPack 7.2: a third figure, and two temperatures
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,"
    "18%@2201,10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 "
    "cpu@52.968C/52.968C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR = (  # JetPack 7.0; an idle GPU rail reads below zero
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972,0%@972,0%@972,0%@972,0%@972,0%@972,"
    "0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] "
    "VIC off APE 300 cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU -392mW/-392mW "
    "VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)

LINES: dict[str, tuple[str, dict[str, float]]] = {
    "nano": (NANO, {"POM_5V_IN": 1.750, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}),
    "xavier": (
        XAVIER,
        {"GPU": 18.401, "CPU": 2.301, "SOC": 4.602, "CV": 0.0, "VDDRQ": 2.914, "SYS5V": 4.632},
    ),
    "xavier, JetPack 5": (
        XAVIER_5,
        {"GPU": 0.467, "CPU": 0.467, "SOC": 1.245, "CV": 0.0, "VDDRQ": 0.311, "SYS5V": 2.768},
    ),
    "orin nano": (ORIN_NANO, {"VDD_IN": 4.556, "VDD_CPU_GPU_CV": 0.495, "VDD_SOC": 1.286}),
    "agx orin": (
        AGX_ORIN,
        {"VDD_GPU_SOC": 2.399, "VDD_CPU_CV": 0.400, "VIN_SYS_5V0": 4.032, "VDDQ_VDD2_1V8AO": 0.301},
    ),
    "agx orin, JetPack 7": (AGX_ORIN_7, {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.500}),
    "thor": (
        THOR,
        {"VDD_GPU": -0.392, "VDD_CPU_SOC_MSS": 3.924, "VIN_SYS_5V0": 5.064, "VIN": 15.004},
    ),
}
