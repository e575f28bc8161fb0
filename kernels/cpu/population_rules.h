// The tables of a rule set, as generated code fills them, and what follows from them for one membrane.
#pragma once

#include <cstdint>

#include "kernels/cpu/population.h"

namespace echoc::population {

constexpr int8_t kAnyCharge = 2;  // as a condition: any; as a result: not touched
constexpr int8_t kUnset = 3;      // no application of the step has given the membrane a charge
constexpr int32_t kNone = -1;
constexpr int32_t kNoPriority = INT32_MIN;

// What becomes of an object when nothing else is to be decided: the upper two bits of an action.
constexpr uint32_t kMove = 0u << 30;   // to the target; nothing else gives the target in this membrane
constexpr uint32_t kMerge = 1u << 30;  // to the target, which others give as well
constexpr uint32_t kErase = 2u << 30;
constexpr uint32_t kDecide = 3u << 30;  // rules have to be looked at
constexpr uint32_t kKindMask = 3u << 30;

enum class RuleKind : uint8_t {
  kCell,    // binds one membrane and decides by its content alone
  kShared,  // binds several, or takes from the membrane around
};

enum class BoundKind : uint8_t { kMaximal, kAtMost, kMinimal, kSequence, kChoice, kArbitrary };
enum class TargetKind : uint8_t { kOut, kIn, kLinked, kSynapses };

struct Span {
  int32_t begin;
  int32_t end;
  int32_t size() const { return end - begin; }
};

struct RuleRow {
  int32_t label;  // of the holder, kNone: whatever is around the inner membranes
  int8_t charge;
  int8_t new_charge;
  bool dissolve;
  RuleKind kind;
  Span consume, produce, promoters, inhibitors;  // into the bags
  Span inner, send, divide;
  int32_t guard;
  int32_t priority;
  int32_t group;
  int32_t component;
  int32_t delay;
  int32_t link, unlink;  // labels
  double weight;
};

struct InnerRow {
  int32_t label;
  int8_t charge;
  bool common;  // all parts get the same products and keep everything: one chain serves them all
  Span consume, results;
};

struct ResultRow {
  int32_t label;
  int8_t charge;
  Span produce;
  int32_t keeps;  // index of a set of objects, kNone: everything
};

struct SendRow {
  TargetKind target;
  int32_t label;
  Span objects;
};

struct DivideRow {
  int32_t label;
  Span produce;
};

struct GroupRow {
  BoundKind bound;
  int32_t limit;
  int32_t label;  // of the home of its rules
  Span rules;     // into the list of rules by group
};

/// A rule that may be found at a membrane, as its holder (member 0) or one of the inner ones (from 1 on).
struct TriggerRow {
  int32_t rule;
  int32_t member;
};

struct BagRow {
  uint32_t object;
  int64_t count;
};

}  // namespace echoc::population
