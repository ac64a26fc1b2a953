-- Which signed link of a job sets when it expires: the reason of its end names it.

alter table submission add column expiring_link text;
alter table submission add constraint submission_expiring_link_known
    check (expiring_link in ('/document_front_image_url', '/document_back_image_url')) not valid;

comment on column submission.expiring_link is 'The signed link by which expires_at was set, as a pointer into the message; null where the job''s own field set it';
comment on column submission.expires_at is 'When the job stops making sense: by its own field, or LINK_EXPIRY_MARGIN before a signed link ends, whichever is first';
