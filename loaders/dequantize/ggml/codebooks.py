"""The codebooks of ggml's kinds: which groups of 1, 4 or 8 small numbers a code can stand for.

Each lists, in ascending order, some of the combinations of a few levels, the first number of a group counting least.
So a codebook is a set: one bit for each combination, compressed. The values are those of ggml (MIT licence):
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import zlib
from base64 import b85decode
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Groups of `width` numbers, each one of `levels`; `chosen`: the bits of those that codes stand for."""

    levels: tuple[int, ...]
    width: int
    chosen: bytes

    def groups(self) -> Tensor:
        """int8 [codes, width] on the CPU."""
        bits = zlib.decompress(b85decode(self.chosen))
        combinations = torch.tensor([index for index in range(8 * len(bits)) if bits[index // 8] >> index % 8 & 1])
        count = len(self.levels)
        digits = torch.stack([combinations // count**place % count for place in range(self.width)], dim=1)
        return torch.tensor(self.levels, dtype=torch.int8)[digits]


CODEBOOKS = {
    "IQ2_XXS": Grid(
        (8, 25, 43),
        8,
        b"c-nPRORB^$43oj#tB`je2YP^R=KfcCw)5@K5e=lV<VbEmf91ogR%p3E0BR^O#16P=^@J3)+t0mx___f>P^zDolEn6;is&dxI!#Zg_{KuzkVd"
        b"4Mw`?l*l~*(z5~c8Qj-!-YZym34v`$TQ4<4*~)dpL;rq|+W4irx`d$&)6^vGb7UkLBrzcFbHqcf>sMFwRxr;MTG;*}m%Qlby-@@TSk)X7om@"
        b"@#uKQIjUUWQ&$2&y}*gX5TV=Bc|Cuh1wL(2Kn3A3Yj<N%;gblzhT7_jxp@MF=lA5st5R^Hl2J=^JV`E{Z0D^#$6R7",
    ),
    "IQ2_XS": Grid(
        (8, 25, 43),
        8,
        b"c-mc2TdsvL2pkgnkBRPwCicH3cK=&BJX-bM<{ZTW!^|+oxJIi-qkD|rsuaR~iB<*?x~C4>8J0pJW<V>X*vo#SY&(-c)w(<-fCU6QVt|)*=>o"
        b"J=N8h~B3mmYKBw*Y)Ca<s*uvOak7T*la5<g=kAh?T96(5+bR(Mt@J=L5^n!u1sF+~=p=RjVCGbM+vDH*59tF!>kC`)-u3GzO}jM8X_r-*1yt"
        b"ubG*&a^iqGs?p-do}D8x2NWXU?%O)=7t88q040RdJ=Ak)9T+$YBcFD31^6BC_W+mG1}iEA-T}Oj@u6-pQ1yByIl9%`W3mW#F%j~<yh(N0zSL"
        b"~oH^Zy%}}tQx4=M73#xoc?jNErTmD?iDs40;(&MG>YYMNuDE=SK;cc#9vM%q_=>7msuqjC",
    ),
    "IQ2_S": Grid(
        (8, 25, 43),
        8,
        b"c-n1JU5W-F3~NE(E9iYHjPDBe{#V(wI=kPpE5rQ7#3X8F%Z9aF@G^(h-0EI3Em0|W3^QwctZ7zp0a8G#rYWS&oF&YfEj@sgh^u5FBBgC>LAk"
        b"BEEtarKv-X}c)kMD5E9g)N*35uFS6j&;COQ!QC2=T0oAzp}=fs8f?3xctXeG?g^dQAA!2(KVP=j1x!<Qgx@l7F)Pu!TMd$m>{ZzEray(N$Az"
        b"Rb24)#*U9zYZZF^+2!@EVQ9?ARiEH!J<ErE8usn4?()-BQhW*1pE<<S|Z6aT82aQO}QP4+el6zUY~*z7~Sl6pK?p!Q_DMIhH4w7?joIO9P^#"
        b"Dw9CRS7mu8OBC|vDii4FoWN_zK9m?6y$}qXC*pyH_2f!)+bXep&HXz~CYasM7Fd3(JhmM~KIbkHJ7yU4;E692~{FNElHOf~Fzm+TBn!W(Jyj"
        b"C6",
    ),
    "IQ3_XXS": Grid(
        (4, 12, 20, 28, 36, 44, 52, 62),
        4,
        b"c-l=-F%H5o3_M%0RAmZ7_lgPeigaLyA4Q!IuVCbv_?)J2Rn;aw-<^~BWtxCXwzFx0%xW)eST<YW5KL&L;j#hAAHoX-c)&}FY<X@1m|7IGsjr"
        b"X>q7@bAuHrcP3L2_`6x)_>^v5;&o?@Fdagv_Uo9H*utGOGEJ93R6P|L2rgx{U}Y-UnrS3sKYtPIbF!WdDS7|dsT<9UQCqzhJe8+4kK5km%Xv"
        b"Hjm=J(sMgqk-e3v^zjTJayVggoDWMJzTWE4a0T)3l-9P!ydlNePrBA?Xny*@kmBo4W|8$?wEo20v5Uy_5",
    ),
    "IQ3_S": Grid(
        (1, 3, 5, 7, 9, 11, 13, 15),
        4,
        b"c-k#d!AiqG5PdVu!e&pqA>uXNMyUCUt<-~hDT4SrX{pfmmf{D9Rs{Q#&TgE;z`Qr}-rMBob#A|%IbF{W(Id*&Lkwq!%0~0(%@Ao{OU0lD_x2"
        b"OXCI^OquXIKLt}o^pYnG?L6&oz+9HeSVPSrN(A}t!YmF^Xmp*3Qy-5G8(e|b5Y-VC?q(AA>+32wuC)HmEXp@c1}PT|h83}iuXSwt^ePGkv?U"
        b"+Lf3a_=1ov?9@{igP&9v4ypFswx3&TJZ@M2_=SuX>*z&qp%+CoXl)ge8!drA@5Agyn!FG+()?*sDei}n1QT95(J|p-wR7#Aht{0!Hx!aZfy;"
        b"cl!bD4D3uqR(zW`GY5;6>@R{_|3X$jRqNR^eu)^e<Ll^vCYlKPU1;QQ+o$IB(hKom+bHx0SXmXXwyZnVo8~6jd#wQ>",
    ),
    "IQ1_S": Grid(
        (-1, 0, 1),
        8,
        b"c-k#eK}(!R7=CxE;dM-9V?RN1diSfb(^(PgE$L;EU0C#DLh=VZ*|bQ>IZZw%yXlwN6ha`hG?#HO$v6$G@ldv(umMk2dT8mb2WdTox*h^v8Vt"
        b"nDuD#8?@Vw9Syw7v(LR2?w<}y}3b9YJG^C&5*&qs>Nl?x;NhAB!%0hRecnsm$a2YwJ@;QqccSPG~@n#@N5uBY$^gNY22s7}?HYgoxmY#Y+!A"
        b"jh1yxWA4l1OzVO1-XRyWBes^wA;LAoBq<x!%nuPhFWp9`{&R@7DG%<XIwD^Is3Q$Jf@<B<<hd(0^?jzIHG8vQn*?-$Ub(LsHW&@kYNcQ%|}d"
        b"P%c;av8KJU^mWiJv*28-WD<$YEG%#}+D!ES;XeDuFD(VlG#i@A4$V;H%7rH52w&LB_pg1xSvl=L<CZ@9?{WdkSxbxSuMq|l64F4MqT|O(RS}"
        b"O@H(bLXvHn!_OntvSw2GXTKiD_6XGLxujp0!)qyF+V=7Bv?g3oFy??D1-6?{(2le%HQrc>Le(m#@Cb_P%)g$;r#{<KcsUbe#9?p_<1{H>jE?"
        b"+1SCIq;Fwj@yPMjA_U90?}vdY$)D1%>fQq-z{36HBT$I&mG*v%J#A~V%aSj@pZtCEAg}V1eou`2@uUxU_YQ=)6;l3U7EjmAKr#y2F0kdO91c"
        b"}@u6ikZ68>90+)KINV7E3oVy0wcNC7Qg*Gnz$6Ckekcj5w;yQl$8BcV}uIeIA*;9XR~L2uzcrHYS+2)y-rqrtcg6e{stpn$cM#il(dTBx(R&"
        b"0u-;P1DmAvG}u@dX;b%ns9v~6p49X^c}lqEMlIFjzJBbrp$X4T{{D_p5YV7e^~xM<^E7<_56qcAaL=FI+lT|4v2#Y&dpW2-Egd@Fdf5G@Dhe"
        b"eu*|v(bMFD;1sQ1",
    ),
}  # 4-bit codes: levels of uneven distances; and twice the e2m1 floats.
LEVELS = {
    "IQ4_NL": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "MXFP4": (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12),
}
SHARED = {"IQ1_M": "IQ1_S", "IQ4_XS": "IQ4_NL"}  # kinds that use another's codebook


@dataclass(frozen=True, eq=False)
class Tables:
    """What the blocks of a kind are looked up in, on one device.

    book: int8 [codes, width], the codebook. entries: the same, each group as one integer. pairs: of 4-bit codes, the
    values of two together, float32 pairs as int64 [256]. signs: of every byte value, its set bits as bytes of ones,
    int64 [256]. parity_signs: those of 7 bits and an eighth that makes their number even, int64 [128].
    """

    book: Tensor
    entries: Tensor
    pairs: Tensor
    signs: Tensor
    parity_signs: Tensor


def has_codebook(kind: str) -> bool:
    name = SHARED.get(kind, kind)
    return name in CODEBOOKS or name in LEVELS


def tables_of(kind: str, device: torch.device) -> Tables:
    """The tables of a kind of blocks that has a codebook.

    The first call for a device copies them there, so that call must not be captured in a graph.
    """
    return _made_for(SHARED.get(kind, kind), device)


@cache
def _made_for(name: str, device: torch.device) -> Tables:
    with torch.inference_mode(False):
        book = CODEBOOKS[name].groups() if name in CODEBOOKS else torch.tensor(LEVELS[name], dtype=torch.int8)[:, None]
        integers = {1: torch.int8, 4: torch.int32, 8: torch.int64}
        one = book.flatten().to(torch.float32)
        pairs = torch.stack([one[:16].repeat(16), one[:16].repeat_interleave(16)], dim=1).view(torch.int64).flatten()
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        signs = (bits * 255).to(torch.uint8).view(torch.int64).flatten()
        odd = bits[:128].sum(1) % 2
        parity_signs = signs[torch.arange(128) + 128 * odd]
        made = (book, book.view(integers[book.shape[1]]).flatten(), pairs, signs, parity_signs)
        return Tables(*(table.to(device) for table in made))
