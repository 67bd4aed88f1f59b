// Modules and launches. The parameters of a kernel are known from the PTX of its image, or from
// the emulation; what a launch hands over is held to them. Ferry's kernels run as emulated, from
// the libraries in the folder `kernels` beside the mock; candle's run as the loops of candle.cpp.

#include "device.h"

#include <algorithm>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <fstream>
#include <map>
#include <memory>
#include <unistd.h>

namespace mock {

namespace {

using Emulate = int (*)(const char* kernel, Grid grid, Grid block, size_t shared, void** arguments);
using Parameters = const char* (*)(const char* kernel);

using Text = const char* (*)();

// One library of emulated kernels, one `.cu` file.
struct Library {
    std::string path;
    Emulate emulate;
    Parameters parameters;
    Text error;
};

std::map<std::string, size_t> launches;
std::vector<std::unique_ptr<Module>> modules;

bool open(const std::string& path, Library* library) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        fault(NOT_FOUND, "%s", dlerror());
        return false;
    }
    library->emulate = reinterpret_cast<Emulate>(dlsym(handle, "ferry_emulate"));
    library->parameters = reinterpret_cast<Parameters>(dlsym(handle, "ferry_emulation_parameters"));
    library->error = reinterpret_cast<Text>(dlsym(handle, "ferry_emulation_error"));
    return library->emulate && library->parameters && library->error;
}

// A launch that was left where it stood has left the emulation's state as it was, so the library is
// loaded anew, under another name.
void open_anew(Library* library) {
    static size_t copies = 0;
    std::string copy = library->path + "." + std::to_string(getpid()) + "." + std::to_string(copies++);
    std::ofstream(copy, std::ios::binary) << std::ifstream(library->path, std::ios::binary).rdbuf();
    open(copy, library);
    unlink(copy.c_str());
}

std::vector<Library>& libraries() {
    static std::vector<Library> found = [] {
        std::vector<Library> libraries;
        Dl_info self;
        if (!dladdr(reinterpret_cast<const void*>(&find_kernel), &self)) return libraries;
        std::string folder = self.dli_fname;
        folder = folder.substr(0, folder.rfind('/') + 1) + "kernels/";
        std::vector<std::string> names;
        if (DIR* entries = opendir(folder.c_str())) {
            while (dirent* entry = readdir(entries)) {
                std::string name = entry->d_name;
                if (name.size() > 3 && name.compare(name.size() - 3, 3, ".so") == 0) names.push_back(name);
            }
            closedir(entries);
        }
        std::sort(names.begin(), names.end());
        for (const std::string& name : names) {
            Library library{folder + name, nullptr, nullptr, nullptr};
            if (open(library.path, &library)) libraries.push_back(library);
        }
        return libraries;
    }();
    return found;
}

// The library that has the kernel, and its parameters: a letter each, `p` a pointer, `i` 4 bytes,
// `l` 8 bytes, `h` 2 bytes.
Library* library_of(const char* kernel, const char** letters) {
    for (Library& library : libraries())
        if ((*letters = library.parameters(kernel))) return &library;
    return nullptr;
}

// From `.entry name(` on, the parameters of each entry point of a PTX text.
void read_ptx(const char* text, Module* module) {
    for (const char* entry = strstr(text, ".entry"); entry; entry = strstr(entry, ".entry")) {
        entry += strlen(".entry");
        const char* name = entry + strspn(entry, " \t\n");
        const char* open = strchr(name, '(');
        if (!open) return;
        const char* name_end = name + strcspn(name, " \t\n(");
        const char* close = strchr(open, ')');
        if (!close) return;
        Kernel kernel{std::string(name, name_end), true, {}, 48 * 1024};
        std::string declared(open + 1, close);
        for (size_t at = declared.find(".param"); at != std::string::npos; at = declared.find(".param", at + 1)) {
            std::string one = declared.substr(at, declared.find(".param", at + 1) - at);
            Parameter parameter{0, one.find(".ptr") != std::string::npos};
            size_t bracket = one.find('[');
            if (bracket != std::string::npos) parameter.bytes = strtoul(one.c_str() + bracket + 1, nullptr, 10);
            else if (one.find("64") != std::string::npos && one.find("64") < one.find("_param")) parameter.bytes = 8;
            else if (one.find(".u16") != std::string::npos || one.find(".b16") != std::string::npos) parameter.bytes = 2;
            else if (one.find(".u8") != std::string::npos || one.find(".b8") != std::string::npos || one.find(".s8") != std::string::npos) parameter.bytes = 1;
            else parameter.bytes = 4;
            kernel.parameters.push_back(parameter);
        }
        module->kernels.push_back(std::move(kernel));
        entry = close;
    }
}

// A launch waits in its stream, so the arguments are copied, as a driver does.
struct Arguments {
    std::vector<std::vector<char>> values;
    std::vector<void*> pointers;

    Arguments(const Kernel& kernel, void** arguments) {
        values.reserve(kernel.parameters.size());
        for (size_t i = 0; i < kernel.parameters.size(); i++) {
            auto from = static_cast<const char*>(arguments[i]);
            values.emplace_back(from, from + kernel.parameters[i].bytes);
        }
        for (auto& value : values) pointers.push_back(value.data());
    }
};

int check_pointers(const Kernel& kernel, const Arguments& arguments) {
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
        if (!kernel.parameters[i].pointer) continue;
        uint64_t address;
        memcpy(&address, arguments.values[i].data(), sizeof address);
        if (address == 0) continue;
        if (const char* wrong = wrong_with(address, 1))
            return fault(ILLEGAL_ADDRESS, "%s: argument %zu, a pointer, is 0x%llx, which %s", kernel.name.c_str(), i,
                         (unsigned long long)address, wrong);
    }
    return SUCCESS;
}

int run(const Kernel& kernel, Grid grid, Grid block, unsigned shared, Arguments& arguments) {
    if (int result = check_pointers(kernel, arguments)) return result;
    int result = SUCCESS;
    std::string where;
    const char* letters = nullptr;
    Library* library = library_of(kernel.name.c_str(), &letters);
    bool whole = guarded(
        [&] {
            if (library) return library->emulate(kernel.name.c_str(), grid, block, shared, arguments.pointers.data());
            return run_candle_kernel(kernel.name, arguments.pointers.data()) ? 0 : -1;
        },
        &result, &where);
    if (!whole) {
        if (library) open_anew(library);
        return fault(ILLEGAL_ADDRESS, "%s touched %s", kernel.name.c_str(), where.c_str());
    }
    if (result != 0) return fault(LAUNCH_FAILED, "%s: %s", kernel.name.c_str(), library ? library->error() : "no such loop");
    if (!edges_intact(&where)) return fault(ILLEGAL_ADDRESS, "%s wrote past the edges of %s", kernel.name.c_str(), where.c_str());
    return SUCCESS;
}

}  // namespace

Module* load_module(const void* image) {
    auto bytes = static_cast<const unsigned char*>(image);
    const unsigned char fatbin[4] = {0x50, 0xED, 0x55, 0xBA}, elf[4] = {0x7f, 'E', 'L', 'F'};
    auto module = std::make_unique<Module>();
    module->ferry = memcmp(bytes, fatbin, 4) == 0 || memcmp(bytes, elf, 4) == 0;
    if (!module->ferry) {
        read_ptx(static_cast<const char*>(image), module.get());
        if (module->kernels.empty()) {
            fault(INVALID_IMAGE, "a module image that is neither machine code nor PTX with an entry point");
            return nullptr;
        }
    }
    modules.push_back(std::move(module));
    return modules.back().get();
}

Kernel* find_kernel(Module* module, const char* name) {
    for (Kernel& kernel : module->kernels)
        if (kernel.name == name) return &kernel;
    const char* letters = nullptr;
    if (!module->ferry || !library_of(name, &letters)) return nullptr;
    // Kernels are handles, so they must stay where they are.
    module->kernels.reserve(1024);
    if (module->kernels.size() == 1024) return nullptr;
    Kernel kernel{name, true, {}, 48 * 1024};
    for (; *letters; letters++)
        kernel.parameters.push_back({*letters == 'p' || *letters == 'l' ? size_t{8} : *letters == 'h' ? size_t{2} : size_t{4}, *letters == 'p'});
    module->kernels.push_back(std::move(kernel));
    return &module->kernels.back();
}

int launch(Kernel* kernel, Grid grid, Grid block, unsigned shared, void* stream, void** arguments) {
    const char* name = kernel->name.c_str();
    const char* letters = nullptr;
    if (!library_of(name, &letters) && !run_candle_kernel(kernel->name, nullptr))
        return fault(NOT_SUPPORTED, "%s: neither an emulated kernel nor a loop of the mock has this name", name);
    if (uint64_t{grid.x} * grid.y * grid.z == 0 || uint64_t{block.x} * block.y * block.z == 0)
        return fault(INVALID_VALUE, "%s: a launch of nothing, grid %u %u %u, block %u %u %u", name, grid.x, grid.y, grid.z, block.x, block.y, block.z);
    if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return fault(INVALID_VALUE, "%s: grid %u %u %u is too large", name, grid.x, grid.y, grid.z);
    if (block.x > 1024 || block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024)
        return fault(INVALID_VALUE, "%s: block %u %u %u is too large", name, block.x, block.y, block.z);
    if (shared > static_cast<unsigned>(kernel->max_dynamic_shared))
        return fault(INVALID_VALUE, "%s: %u bytes of shared memory, of %d that it may have", name, shared, kernel->max_dynamic_shared);
    auto copied = std::make_shared<Arguments>(*kernel, arguments);
    if (int result = check_pointers(*kernel, *copied)) return result;
    launches[kernel->name]++;
    return enqueue(stream, name, [kernel, grid, block, shared, copied] { return run(*kernel, grid, block, shared, *copied); });
}

}  // namespace mock

extern "C" size_t ferry_mock_launches(const char* kernel) {
    std::lock_guard<std::recursive_mutex> held(mock::lock);
    if (kernel) return mock::launches[kernel];
    size_t all = 0;
    for (auto& [name, count] : mock::launches) all += count;
    return all;
}
