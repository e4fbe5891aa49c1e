// Runs two signatures of a SavedModel through the C API of TensorFlow (TF_LoadSessionFromSavedModel: the loader that
// TensorFlow Serving uses), without Python and without anything of the zoo.
//
//   serve DIR HEIGHT WIDTH PIXELS STREAM RESULT IMAGE_IN STREAM_OUT STREAM_IN IMAGE_OUT
//
// PIXELS: file of uint8 [HEIGHT, WIDTH, 3]. Writes the bit stream to STREAM and the decoded pixels to RESULT. The last
// four are the tensors of the signatures `compress` and `decompress`, as operation:index. Then it hands a damaged stream
// to `decompress`, prints code and text of the error, and checks that the session still answers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static void check(bool good, const char* what) {
  if (!good) {
    fprintf(stderr, "%s\n", what);
    exit(1);
  }
}

static TF_Output output(TF_Graph* graph, const std::string& tensor) {
  const size_t colon = tensor.find(':');
  TF_Output found{TF_GraphOperationByName(graph, tensor.substr(0, colon).c_str()), atoi(tensor.c_str() + colon + 1)};
  check(found.oper != nullptr, tensor.c_str());
  return found;
}

static TF_Tensor* text(const std::string& value) {
  const int64_t shape[1] = {1};
  TF_Tensor* tensor = TF_AllocateTensor(TF_STRING, shape, 1, sizeof(TF_TString));
  auto* string = static_cast<TF_TString*>(TF_TensorData(tensor));
  TF_TString_Init(string);
  TF_TString_Copy(string, value.data(), value.size());
  return tensor;
}

static void write(const char* path, const void* data, size_t size) {
  FILE* file = fopen(path, "wb");
  check(file && fwrite(data, 1, size, file) == size && !fclose(file), path);
}

int main(int, char** arg) {
  const int64_t shape[4] = {1, atoi(arg[2]), atoi(arg[3]), 3};
  const size_t size = shape[1] * shape[2] * 3;
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  const char* tag = "serve";
  TF_Session* session =
      TF_LoadSessionFromSavedModel(TF_NewSessionOptions(), nullptr, arg[1], &tag, 1, graph, nullptr, status);
  check(TF_GetCode(status) == TF_OK, TF_Message(status));

  auto run = [&](const char* in, TF_Tensor* value, const char* out) {
    const TF_Output input = output(graph, in), result = output(graph, out);
    TF_Tensor* fetched = nullptr;
    TF_SessionRun(session, nullptr, &input, &value, 1, &result, &fetched, 1, nullptr, 0, nullptr, status);
    return fetched;
  };

  TF_Tensor* image = TF_AllocateTensor(TF_UINT8, shape, 4, size);
  FILE* file = fopen(arg[4], "rb");
  check(file && fread(TF_TensorData(image), 1, size, file) == size, arg[4]);
  TF_Tensor* streams = run(arg[7], image, arg[8]);
  check(TF_GetCode(status) == TF_OK, TF_Message(status));
  const auto* string = static_cast<TF_TString*>(TF_TensorData(streams));
  const std::string stream(TF_TString_GetDataPointer(string), TF_TString_GetSize(string));
  write(arg[5], stream.data(), stream.size());

  std::string damaged = stream;
  damaged[damaged.size() / 2] ^= 0x10;
  run(arg[9], text(damaged), arg[10]);
  printf("%d %s\n", TF_GetCode(status), TF_Message(status));
  check(TF_GetCode(status) == TF_INVALID_ARGUMENT, "a damaged stream was not refused as it should be");

  TF_Tensor* decoded = run(arg[9], text(stream), arg[10]);
  check(TF_GetCode(status) == TF_OK, TF_Message(status));
  check(TF_TensorByteSize(decoded) == size, "the decoded picture is of another size");
  write(arg[6], TF_TensorData(decoded), size);
  return 0;
}
