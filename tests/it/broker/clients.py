"""What a Python program does with a Kafka, done with the embedded broker: confluent_kafka against argv[1]."""

import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

address = sys.argv[1]
base = {"bootstrap.servers": address}


def read(group, topics, count, **more):
    """So many committed records of a group's."""
    settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False, **base, **more}
    consumer = Consumer(settings)
    consumer.subscribe(topics)
    records = []
    for _ in range(600):
        record = consumer.poll(0.1)
        if record is None:
            continue
        if record.error():
            raise KafkaException(record.error())
        records.append(record)
        if len(records) == count:
            break
    assert len(records) == count, f"{len(records)} of {count} records"
    consumer.commit(asynchronous=False)
    return consumer, records


# Topics, configurations, partitions.
admin = AdminClient(base)
for future in admin.create_topics([NewTopic("py.in", 3, 1), NewTopic("py.out", 1, 1)]).values():
    future.result(30)
for future in admin.create_partitions([NewPartitions("py.in", 4)]).values():
    future.result(30)
metadata = admin.list_topics(timeout=30)
assert len(metadata.topics["py.in"].partitions) == 4
resource = ConfigResource(ResourceType.TOPIC, "py.in")
resource.add_incremental_config(ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET))
for future in admin.incremental_alter_configs([resource]).values():
    future.result(30)
described = admin.describe_configs([ConfigResource(ResourceType.TOPIC, "py.in")])
configs = next(iter(described.values())).result(30)
assert configs["retention.ms"].value == "-1"
assert admin.describe_cluster().result(30).nodes

# Produce with keys, headers and every codec; consume in a group.
delivered = []
for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
    producer = Producer({**base, "compression.type": codec, "enable.idempotence": True, "linger.ms": 50})
    for number in range(100):
        producer.produce(
            "py.in",
            key=f"k{number % 7}",
            value=f"{codec} {number}",
            headers=[("codec", codec)],
            on_delivery=lambda error, record: delivered.append((error, record.partition())),
        )
    assert producer.flush(30) == 0
assert len(delivered) == 500 and not any(error for error, _ in delivered)
consumer, records = read("py.group", ["py.in"], 500)
assert {record.value().decode() for record in records} == {
    f"{codec} {number}" for codec in ["none", "gzip", "snappy", "lz4", "zstd"] for number in range(100)
}
assert all(record.headers() == [("codec", record.value().split()[0])] for record in records)
described = admin.describe_consumer_groups(["py.group"])["py.group"].result(30)
assert len(described.members) == 1 and described.members[0].assignment.topic_partitions
listed = admin.list_consumer_groups().result(30)
assert "py.group" in [group.group_id for group in listed.valid]

# A transaction over records and offsets; an aborted one; a fenced one.
producer = Producer({**base, "transactional.id": "py.id"})
producer.init_transactions(30)
for commits in [True, False]:
    producer.begin_transaction()
    producer.produce("py.out", value=f"commits {commits}")
    positions = [TopicPartition("py.in", 0, 7 if commits else 9)]
    producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), 30)
    if commits:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)
consumer.close()
successor = Producer({**base, "transactional.id": "py.id"})
successor.init_transactions(30)
try:
    producer.begin_transaction()
    producer.produce("py.out", value="never")
    producer.commit_transaction(30)
    raise AssertionError("the predecessor was not fenced")
except KafkaException as error:
    assert error.args[0].code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH), error
successor.begin_transaction()
successor.produce("py.out", value="after")
successor.commit_transaction(30)
second, records = read("py.second", ["py.out"], 2, **{"isolation.level": "read_committed"})
assert [record.value() for record in records] == [b"commits True", b"after"]
second.close()
checker = Consumer({**base, "group.id": "py.group"})
assert checker.committed([TopicPartition("py.in", 0)], 30)[0].offset == 7
low, high = checker.get_watermark_offsets(TopicPartition("py.in", 0), 30)
assert low == 0 and high > 0
checker.close()

# Offsets, deletions.
asked = admin.list_offsets({TopicPartition("py.in", 0): OffsetSpec.latest()})
assert next(iter(asked.values())).result(30).offset == high
for future in admin.delete_records([TopicPartition("py.in", 0, 5)]).values():
    assert future.result(30).low_watermark == 5
for future in admin.delete_consumer_groups(["py.second"]).values():
    future.result(30)
for future in admin.delete_topics(["py.out"]).values():
    future.result(30)
assert "py.out" not in admin.list_topics(timeout=30).topics
print("all of it")
