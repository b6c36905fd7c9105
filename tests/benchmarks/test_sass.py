import dataclasses

from benchmarks import sass

# As nvdisasm prints it with control codes: a loop over tiles, one over steps inside it,
# and behind the program's end the slow path of a wait, which goes back into the loop.
PROGRAM = """
	.section	.text.body,"ax",@progbits
.text.body:
   -:-:-:Y:01        /*0000*/                   LDC R1, c[0x0][0x28] 
   -:-:-:Y:01        /*0010*/                   UMOV UR4, 0x400 
.L_x_1:
   -:-:-:Y:01        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2] 
   -:-:-:Y:05        /*0030*/              @!P0 BRA `(.L_x_5) 
.L_x_2:
   1:-:2:Y:04        /*0040*/                   LDSM.16.M88.4 R4, [R2+0x40] 
   1:-:2:Y:04        /*0050*/                   LDS.128 R8, [R3] 
   -:-:-:Y:02        /*0060*/                   IMAD R20, R20, 0x2, RZ 
   -:4:-:-:01        /*0070*/                   HMMA.16816.F32.BF16 R24, R4, R8, R24 
   -:4:-:-:01        /*0080*/                   HMMA.16816.F32.BF16 R28, R4, R10, R28 
.L_x_3:
   -:-:-:Y:01        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R9] 
   -:-:-:Y:05        /*00a0*/              @!P1 BRA `(.L_x_3) 
   -:-:-:Y:05        /*00b0*/               @P2 BRA `(.L_x_2) 
   -:-:-:Y:01        /*00c0*/                   HMMA.16816.F32.BF16 R24, R4, R8, R24 
   -:-:-:Y:01        /*00d0*/                   STSM.16.M88.2 [R2], R24 
   -:-:-:Y:06        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 
   -:-:-:Y:01        /*00f0*/               @P3 EXIT 
   -:-:-:Y:01        /*0100*/             @!UP0 UTMASTG.3D [UR8], [UR6] 
   -:-:-:Y:05        /*0110*/                   BRA `(.L_x_1) 
   -:-:-:Y:05        /*0120*/                   EXIT 
.L_x_5:
   -:-:-:Y:01        /*0130*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2] 
   -:-:-:Y:05        /*0140*/              @!P0 BRA `(.L_x_5) 
   -:-:-:Y:05        /*0150*/                   BRA `(.L_x_2) 
.L_x_6:
   -:-:-:Y:05        /*0160*/                   BRA `(.L_x_6) 
"""
STEPS = sass.Loop(
    instructions=6,
    products=2,
    sums=2,
    shared=2,
    wavefronts=4 + 4,
    barriers=0,
    waits=0,
    copies=0,
)


def test_instructions_are_read():
    code = sass.parse(PROGRAM)
    assert [one.address for one in code] == list(range(0, 0x170, 16))
    branch = code[3]
    assert (branch.predicate, branch.family, branch.target) == ("!P0", "BRA", 0x130)
    assert code[4].opcode == "LDSM.16.M88.4"
    assert [one.wavefronts for one in code[4:8]] == [4, 4, 0, 0]
    assert sass.parse("") == ()


def test_the_main_loop_has_most_products():
    loop = sass.main_loop(sass.parse(PROGRAM))
    assert loop == STEPS
    assert loop.instructions_per_product == 3.0
    assert loop.wavefronts_per_product == 4.0


def test_loops_inside_are_left_out():
    # Of the steps, one product is left: the loop over tiles has as many, and more.
    more = (
        "   -:-:-:Y:01        /*00c8*/        HMMA.16816.F32.BF16 R32, R4, R8, R32 \n"
    )
    line = PROGRAM.index("   -:-:-:Y:01        /*00d0*/")
    code = sass.parse(PROGRAM[:line] + 2 * more + PROGRAM[line:])
    assert sass.main_loop(code) == sass.Loop(
        instructions=10,
        products=3,
        sums=2,
        shared=1,
        wavefronts=2,
        barriers=1,
        waits=1,
        copies=1,
    )


def test_without_products():
    code = [
        dataclasses.replace(one, opcode=one.opcode.replace("HMMA", "FFMA"))
        for one in sass.parse(PROGRAM)
    ]
    assert sass.main_loop(code) is None
    assert sass.main_loop([]) is None
