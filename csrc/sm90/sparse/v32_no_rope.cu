// Sparse decode over a cache of v32_no_rope rows (512 e4m3, 4 scales).
#define FMH_LISTS 1
#define FMH_FORMAT 3
#include "sm90/quantised/kernel.h"
