// What L2 evicts first of what copies read: nothing, every second line, or all of it.
#pragma once

namespace fmh {

enum EvictFirst { kEvictNone, kEvictHalf, kEvictAll };

}  // namespace fmh
