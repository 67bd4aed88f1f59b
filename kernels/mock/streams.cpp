// Streams, events and graphs. A stream does its work in its order, but not before somebody waits
// for it: what relies on a wait that is missing finds its data not there yet.

#include "device.h"

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <set>

namespace mock {

std::recursive_mutex lock;
int sticky = SUCCESS;

namespace {

struct Item {
    std::string name;
    Work work;
};

std::string faults;
std::string taken;
size_t waits = 0;

}  // namespace

int fault(int code, const char* format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    fprintf(stderr, "mock CUDA: %s\n", text);
    if (faults.size() < 64 * 1024) faults += std::string(text) + "\n";
    return code;
}

struct Stream {
    std::deque<Item> queue;
    // Items ever queued, and ever done.
    uint64_t queued = 0, done = 0;
    bool draining = false;
    // What is captured so far, if it is.
    std::vector<Item>* capture = nullptr;
};

struct Event {
    Stream* stream = nullptr;
    // Items of the stream that it waits for.
    uint64_t count = 0;
};

struct Graph {
    std::vector<Item> items;
};

namespace {

std::set<Stream*> streams;
std::set<Event*> events;
std::set<Graph*> graphs;

}  // namespace

Stream* stream_of(void* handle) {
    // The legacy default stream and the default stream of the thread: one each is enough.
    static Stream* const defaults[2] = {*streams.insert(new Stream).first, *streams.insert(new Stream).first};
    auto number = reinterpret_cast<uintptr_t>(handle);
    if (number < 2) return defaults[0];
    if (number == 2) return defaults[1];
    auto stream = static_cast<Stream*>(handle);
    return streams.count(stream) ? stream : nullptr;
}

int drain(Stream* stream, uint64_t count) {
    if (sticky) return sticky;
    if (stream->draining) return SUCCESS;
    stream->draining = true;
    int result = SUCCESS;
    while (stream->done < count && !stream->queue.empty() && result == SUCCESS) {
        Item item = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        result = item.work();
        if (result != SUCCESS) {
            // As on a device: what comes after an error in a stream is never done.
            sticky = result;
        }
    }
    stream->draining = false;
    return result;
}

int drain(void* handle) {
    Stream* stream = stream_of(handle);
    if (!stream) return fault(INVALID_HANDLE, "a stream that does not exist");
    return drain(stream, stream->queued);
}

int drain_all() {
    for (Stream* stream : streams)
        if (int result = drain(stream, stream->queued)) return result;
    return SUCCESS;
}

int enqueue(void* handle, const char* name, Work work) {
    if (sticky) return sticky;
    Stream* stream = stream_of(handle);
    if (!stream) return fault(INVALID_HANDLE, "%s on a stream that does not exist", name);
    if (stream->capture) {
        stream->capture->push_back({name, std::move(work)});
        return SUCCESS;
    }
    stream->queue.push_back({name, std::move(work)});
    stream->queued++;
    return SUCCESS;
}

int may_synchronize(void* handle, const char* what) {
    if (sticky) return sticky;
    Stream* stream = stream_of(handle);
    if (stream && stream->capture) return fault(STREAM_CAPTURE_UNSUPPORTED, "%s while the stream is being captured", what);
    if (stream && stream->done < stream->queued) waits++;
    return SUCCESS;
}

}  // namespace mock

using namespace mock;

#define HELD std::lock_guard<std::recursive_mutex> held(mock::lock)

extern "C" {

size_t ferry_mock_waits() {
    HELD;
    return waits;
}

const char* ferry_mock_take_faults() {
    HELD;
    taken.swap(faults);
    faults.clear();
    return taken.c_str();
}

void ferry_mock_reset() {
    HELD;
    sticky = SUCCESS;
    for (Stream* stream : streams) {
        stream->queue.clear();
        stream->done = stream->queued;
        stream->capture = nullptr;
    }
}

int cuStreamCreateWithPriority(void** stream, unsigned, int) {
    HELD;
    if (sticky) return sticky;
    *stream = *streams.insert(new Stream).first;
    return SUCCESS;
}

int cuStreamCreate(void** stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

int cuStreamDestroy_v2(void* handle) {
    HELD;
    // What is queued is still done.
    int result = drain(handle);
    Stream* stream = stream_of(handle);
    if (reinterpret_cast<uintptr_t>(handle) > 2 && streams.erase(stream)) {
        for (Event* event : events)
            if (event->stream == stream) event->stream = nullptr;
        delete stream;
    }
    return result;
}

int cuStreamSynchronize(void* stream) {
    HELD;
    if (int result = may_synchronize(stream, "a wait")) return result;
    return drain(stream);
}

int cuCtxSynchronize() {
    HELD;
    for (Stream* stream : streams)
        if (stream->done < stream->queued) {
            waits++;
            break;
        }
    return sticky ? sticky : drain_all();
}

int cuEventCreate(void** event, unsigned) {
    HELD;
    if (sticky) return sticky;
    *event = *events.insert(new Event).first;
    return SUCCESS;
}

int cuEventDestroy_v2(void* event) {
    HELD;
    auto known = static_cast<Event*>(event);
    if (!events.erase(known)) return fault(INVALID_HANDLE, "an event that does not exist is destroyed");
    delete known;
    return SUCCESS;
}

int cuEventRecord(void* event, void* handle) {
    HELD;
    if (sticky) return sticky;
    auto known = static_cast<Event*>(event);
    Stream* stream = stream_of(handle);
    if (!stream || !events.count(known)) return fault(INVALID_HANDLE, "an event or stream that does not exist is recorded");
    known->stream = stream;
    known->count = stream->queued;
    return SUCCESS;
}

int cuStreamWaitEvent(void* handle, void* event, unsigned) {
    HELD;
    auto known = static_cast<Event*>(event);
    if (!events.count(known)) return fault(INVALID_HANDLE, "a stream waits for an event that does not exist");
    Stream* other = known->stream;
    uint64_t count = known->count;
    if (!other || other == stream_of(handle)) return sticky;
    return enqueue(handle, "wait for an event", [other, count] { return streams.count(other) ? drain(other, count) : SUCCESS; });
}

int cuEventSynchronize(void* event) {
    HELD;
    if (sticky) return sticky;
    auto known = static_cast<Event*>(event);
    if (!events.count(known)) return fault(INVALID_HANDLE, "a wait for an event that does not exist");
    if (known->stream && known->stream->done < known->count) waits++;
    return known->stream ? drain(known->stream, known->count) : SUCCESS;
}

int cuEventQuery(void* event) {
    HELD;
    if (sticky) return sticky;
    auto known = static_cast<Event*>(event);
    if (!events.count(known)) return fault(INVALID_HANDLE, "an event that does not exist is asked for");
    if (!known->stream || known->stream->done >= known->count) return SUCCESS;
    // Who asks again and again lets time pass.
    if (int result = drain(known->stream, known->stream->done + 1)) return result;
    return NOT_READY;
}

int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    HELD;
    if (!events.count(static_cast<Event*>(start)) || !events.count(static_cast<Event*>(end))) return INVALID_HANDLE;
    *milliseconds = 1.0f;
    return SUCCESS;
}

int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

// ---- Graphs: the items of a capture, done again with the arguments that they were captured with.

int cuStreamBeginCapture_v2(void* handle, int) {
    HELD;
    Stream* stream = stream_of(handle);
    if (!stream || stream->capture) return INVALID_HANDLE;
    stream->capture = new std::vector<Item>;
    return SUCCESS;
}

int cuStreamIsCapturing(void* handle, int* status) {
    HELD;
    Stream* stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = stream->capture ? 1 : 0;
    return SUCCESS;
}

int cuStreamEndCapture(void* handle, void** graph) {
    HELD;
    Stream* stream = stream_of(handle);
    if (!stream || !stream->capture) return INVALID_HANDLE;
    auto made = new Graph{std::move(*stream->capture)};
    delete stream->capture;
    stream->capture = nullptr;
    graphs.insert(made);
    *graph = made;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    HELD;
    auto known = static_cast<Graph*>(graph);
    if (!graphs.count(known)) return INVALID_HANDLE;
    *executable = *graphs.insert(new Graph(*known)).first;
    return SUCCESS;
}

int cuGraphUpload(void*, void*) { return SUCCESS; }

int cuGraphLaunch(void* executable, void* stream) {
    HELD;
    auto known = static_cast<Graph*>(executable);
    if (!graphs.count(known)) return fault(INVALID_HANDLE, "a graph that does not exist is launched");
    for (const Item& item : known->items)
        if (int result = enqueue(stream, item.name.c_str(), item.work)) return result;
    return SUCCESS;
}

int cuGraphDestroy(void* graph) {
    HELD;
    auto known = static_cast<Graph*>(graph);
    if (!graphs.erase(known)) return INVALID_HANDLE;
    delete known;
    return SUCCESS;
}

int cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

}  // extern "C"
