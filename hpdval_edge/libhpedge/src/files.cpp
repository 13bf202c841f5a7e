#include "files.hpp"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <sys/stat.h>

#include <memory>
#include <stdexcept>
#include <system_error>

namespace hpdval {

std::string read_file(const std::string& path) {
    const auto failure = [] { return std::system_error(errno, std::generic_category()); };
    const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rb"), fclose);
    if (!file) throw failure();
    std::string data;
    struct stat status;
    if (fstat(fileno(file.get()), &status) == 0 && S_ISREG(status.st_mode))
        data.reserve(static_cast<size_t>(status.st_size) + SPARE);
    char block[1 << 16];
    while (const size_t count = fread(block, 1, sizeof block, file.get())) data.append(block, count);
    if (ferror(file.get())) throw failure();
    return data;
}

std::string sha256(const std::string& data) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    if (!EVP_Digest(data.data(), data.size(), digest, &length, EVP_sha256(), nullptr))
        throw std::runtime_error("OpenSSL gives no sha256");
    std::string hex;
    for (unsigned i = 0; i < length; ++i) {
        hex += "0123456789abcdef"[digest[i] >> 4];
        hex += "0123456789abcdef"[digest[i] & 15];
    }
    return hex;
}

}  // namespace hpdval
