-- What was proposed: one that waits, one that was approved and done, and one that was declined.
insert into proposal (action, job_id, customer_id, finding, note, proposed_by, version)
select 'resolve', job_id, customer_id, 'rejected', 'the newer one was accepted', 'ana', 'needs_review, token 1, 2 entries'
from submission where state = 'needs_review' limit 1;

insert into proposal (action, customer_id, used, note, proposed_by, version)
values ('budget', '00000000-0000-0000-0001-000000000021', 1, 'made by hand', 'ana', '1 spent here, 0 elsewhere');
update proposal set decision = 'approved', decided_by = 'ben', decided_at = now(), decision_note = 'seen there, too'
where action = 'budget';
insert into intervention (action, by, note, customer_id, detail, proposal_id)
select 'budget', proposed_by, note, customer_id, '1 spent elsewhere', id from proposal where action = 'budget';

insert into proposal (action, note, proposed_by, version) values ('resume', 'maintenance is over', 'ana', 'pause 1');
update proposal set decision = 'declined', decided_by = 'ben', decided_at = now(), decision_note = 'not yet'
where action = 'resume';
