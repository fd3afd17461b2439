// Included before every source of llama.cpp by `peers`.
// In GCC 12, `_tile_loadconfig` tells the compiler that 8 bytes are read of the 64 that the instruction reads. The stores of the
// others are then dropped, and the first tile instruction is an illegal one: a machine with AMX could serve no quantized file.
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(from) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(from)))
#endif
