-- Validates what 0016 added. Of this, writers notice nothing.
update submission set ended_at = received_at where ended_at < received_at;
alter table submission validate constraint submission_state_known;
alter table intervention validate constraint intervention_action_known;
