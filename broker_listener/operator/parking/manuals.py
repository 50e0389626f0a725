"""What ``knime-peruser parked ... --help`` says beyond the options."""

from typing import Final

_WHICH: Final = """\
        Which: without any condition all of them, else those that meet every one. ID is as list shows it and as job= has
        it in the listener's log; its first six characters are enough. --user is the name in the body, be it one or not.
        TIME is how long ago (90s, 30m, 2h, 7d), a date, or a date and time (2026-03-03T14:00, this host's zone). A
        message that does not say when it was parked has no age.
"""
_EXIT: Final = """\
          2    wrong usage, or the configuration cannot be used
          3    the broker cannot be reached
          4    not permitted: run it as root; or the listener's account lacks a right
"""
_LOOKING: Final = """\
        Nothing is changed. All messages up to the last one shown are taken without being settled and are given back,
        each to its place; their redelivered flag is set from then on. For that moment nobody else sees them; the
        listener only adds to this queue and is not disturbed, nor is its prefetch, and the jobs queue is not touched.

        Where the vhost's default makes the parked queue a quorum queue, what it gets back may be in another order, and
        the broker counts each look and drops a message after its delivery limit (20 on RabbitMQ 4): after ten looks
        this command warns and goes no further.
"""
PARKED: Final = """\
        Look at the messages that the listener put aside, since they are no jobs or their users may have no executor;
        publish them again, or drop them. README, "Parked messages", has the reasons.

        A retry that is interrupted, be it by SIGKILL, loses no message and publishes none twice. The job and a mark of
        its message are published in one transaction, then message and mark are taken off in another. Who was killed
        between the two left both: the job was published, or the broker refused it at that very moment. Such a message
        is "in doubt". It stays, list shows it, and a retry leaves it alone: look for its id (job=) in the listener's
        log after the retry; then drop it, or retry it with --in-doubt.

        One of these commands at a time is at the queue; another one waits 5 s for it, then gives up.
"""
LIST: Final = f"""\
        List parked messages, oldest first. --json prints each as one line of JSON.

{_WHICH}
{_LOOKING}
        examples:
          knime-peruser parked list --reason start_failed --younger-than 2h
          knime-peruser parked list --user alice --json

        exit status:
          0    done
          1    no message matches, or there is no queue
{_EXIT}"""
SHOW: Final = f"""\
        Show parked messages with properties and headers; --body adds the beginning of the body, which holds a user's
        job. Control characters are shown as escapes. --json prints each as one line of JSON.

{_WHICH}
{_LOOKING}
        examples:
          knime-peruser parked show 3f2a91
          knime-peruser parked show --reason not_json --limit 1 --body

        exit status:
          0    done
          1    no message matches, or there is no queue
{_EXIT}"""
RETRY: Final = f"""\
        Publish parked messages to the jobs queue again, as the listener hands jobs over (broker.exchange and
        broker.routing_key), oldest first. Body and properties are byte for byte those that came, but for user_id: the
        broker takes it from the publisher's own account alone. Each is taken off only after the broker has its job.
        Repair the cause first: what is parked for the same reason is back at the end of this queue, and is not met
        again by this run.

{_WHICH}
        "knime-peruser parked --help" says what an interrupted retry leaves, and what to do about messages in doubt. A
        broker that is killed meanwhile loses no job, and has messages again, in doubt, whose removal it had not
        written: so that this is soon over, a run ends with two seconds of rest.

        Ctrl-C and SIGTERM end after the message that is under way. Messages that do not match are held while it runs,
        and given back to their places; it needs memory for one message at a time.

        examples:
          knime-peruser parked retry --reason start_failed --dry-run
          knime-peruser parked retry --reason unknown_user --user alice --yes

        exit status:
          0    done
          1    none matches; some were left (in doubt, or not to be restored), or it ended early
{_EXIT}          130  interrupted at the question
"""
DROP: Final = f"""\
        Take parked messages off the queue for good, those in doubt as well. The broker has confirmed it when the
        command ends; interrupted, it has dropped some.

{_WHICH}
        examples:
          knime-peruser parked drop --reason not_json --older-than 30d
          knime-peruser parked drop 3f2a91 --yes

        exit status:
          0    done
          1    none matches, or it ended early
{_EXIT}          130  interrupted at the question
"""
WORN: Final = (
    "this queue is a quorum queue and has been looked at ten times; it may drop what is looked at more often. No"
    " further message is looked at. Retry or drop these, or raise the queue's delivery-limit by a policy"
)
