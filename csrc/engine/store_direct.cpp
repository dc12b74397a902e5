// The direct road: device memory is host memory, so a block is written from, and read into, the tensor's own bytes.
#include <utility>

#include "base/small_memory.h"
#include "engine/tensor_store.h"

namespace memsys {

void TensorStore::start_direct_out(const BlockRef& block, const void* source, StreamView producer) {
  block->file_span = make_small<FileSpan>(spill_, block->bytes, block->phase);
  const EventRef produced = engine_->mark(producer);
  const Gate gate = engine_->device().gate(produced->id());
  engine_->executor().post(engine_->file_lane().write_queue, small_function([this, block, source, produced] {
                             const TransferEntry entry = begin_entry(*block, Direction::out, Tier::file, Hop::device);
                             const auto finish = small_function([this, block, entry](std::exception_ptr error) {
                               end_entry(entry, error);
                               end(block->stored, error);
                               source_left(block, error);
                             });
                             try {
                               block->file_span->write(source, engine_->file_lane(), finish);
                             } catch (...) {
                               finish(std::current_exception());
                             }
                           }),
                           gate);
}

void TensorStore::start_direct_in(const ArrivalRef& arrival) {
  const BlockRef& block = arrival->block;
  file_in_bytes_ += block->file_span->file_bytes();
  engine_->executor().post(
      engine_->file_lane().read_queue, small_function([this, arrival] {
        if (arrival->block->stored.error()) return fail(arrival, arrival->block->stored.error());
        const TransferEntry entry = begin_entry(*arrival->block, Direction::in, Tier::file, Hop::device);
        try {
          arrival->block->file_span->read(arrival->target, engine_->file_lane(),
                                          small_function([this, arrival, entry](std::exception_ptr error) {
                                            end_entry(entry, error);
                                            end(arrival->issued, error);
                                            end(arrival->done, error);
                                          }));
        } catch (...) {
          fail(arrival, std::current_exception());
        }
      }),
      {.ready = small_function([block] { return block->stored.is_done(); }), .block = {}});
}

}  // namespace memsys
