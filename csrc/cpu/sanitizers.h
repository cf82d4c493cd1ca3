// Which sanitizer this is compiled with, if any: JKOFLOW_ADDRESS_SANITIZER or JKOFLOW_THREAD_SANITIZER.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define JKOFLOW_ADDRESS_SANITIZER 1
#elif defined(__SANITIZE_THREAD__)
#define JKOFLOW_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define JKOFLOW_ADDRESS_SANITIZER 1
#elif __has_feature(thread_sanitizer)
#define JKOFLOW_THREAD_SANITIZER 1
#endif
#endif

#ifdef JKOFLOW_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif
