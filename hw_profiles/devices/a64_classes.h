/* Classes of A64 instructions, by the encodings of Arm's Architecture Reference Manual (DDI 0487, part C4).
 * An instruction is in class ALL and in every class that its pattern matches.
 * The names in hw_profiles/devices/emulated.py stand in the same order. */
#ifndef A64_CLASSES_H
#define A64_CLASSES_H
#include <stdint.h>

enum {
    A64_ALL,
    A64_LOAD_STORE,     /* any load or store */
    A64_VECTOR_MEMORY,  /* of those, of SIMD and floating-point registers */
    A64_SIMD,           /* data processing, SIMD and floating point */
    A64_FMLA,           /* FMLA, FMLS: vector, and by element */
    A64_DOT,            /* SDOT, UDOT, USDOT, SUDOT */
    A64_MATRIX,         /* SMMLA, UMMLA, USMMLA */
    A64_MULTIPLY_WIDE,  /* [SU]MLAL, [SU]MLSL, [SU]MULL and the second halves, vector and by element */
    A64_BRANCH,         /* branches, exceptions, system */
    A64_INTEGER,        /* data processing on general registers */
    A64_CLASSES
};

#define A64_IS(mask, value) ((word & (mask)) == (value))

/* Adds one to every class of an instruction word. */
void a64_classify(uint32_t word, uint64_t counts[A64_CLASSES]) {
    unsigned group = (word >> 25) & 15; /* op0 of table C4-1 */
    counts[A64_ALL]++;
    if ((group & 5) == 4) {
        counts[A64_LOAD_STORE]++;
        counts[A64_VECTOR_MEMORY] += (word >> 26) & 1;
    } else if ((group & 7) == 7) {
        counts[A64_SIMD]++;
        if (A64_IS(0xBF20FC00, 0x0E20CC00)        /* three same, single and double */
            || A64_IS(0xBF60FC00, 0x0E400C00)     /* three same, half */
            || A64_IS(0xBF80B400, 0x0F801000)     /* by element, single and double */
            || A64_IS(0xBFC0B400, 0x0F001000))    /* by element, half */
            counts[A64_FMLA]++;
        else if (A64_IS(0x9FE0FC00, 0x0E809400)   /* S/UDOT */
                 || A64_IS(0xBFE0FC00, 0x0E809C00) /* USDOT */
                 || A64_IS(0x9FC0F400, 0x0F80E000) /* S/UDOT by element */
                 || A64_IS(0xBF40F400, 0x0F00F000)) /* US/SUDOT by element */
            counts[A64_DOT]++;
        else if (A64_IS(0xDFE0F400, 0x4E80A400))
            counts[A64_MATRIX]++;
        else if (A64_IS(0x9F20DC00, 0x0E208000)   /* MLAL, MLSL */
                 || A64_IS(0x9F20FC00, 0x0E20C000) /* MULL */
                 || A64_IS(0x9F00B400, 0x0F002000) /* MLAL, MLSL by element */
                 || A64_IS(0x9F00F400, 0x0F00A000)) /* MULL by element */
            counts[A64_MULTIPLY_WIDE]++;
    } else if ((group & 14) == 10) {
        counts[A64_BRANCH]++;
    } else {
        counts[A64_INTEGER]++;
    }
}
#endif
