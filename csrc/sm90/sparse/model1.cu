// Sparse decode over caches of model1 pages (448 e4m3 and 64 bf16 a token, scales at the end).
#define FMH_LISTS 1
#define FMH_FORMAT 2
#include "sm90/quantised/kernel.h"
